"""A real Kubernetes cluster on one Linux machine, without root and without containers.

A real control plane (etcd, kube-apiserver, kube-controller-manager, kube-scheduler) runs as
ordinary processes on loopback, and one node agent plays the kubelets of all nodes by running
pods as local processes. The demo and the tests stand on it; `pdserve local` is its command.
Nothing here knows prefill from decode: a cluster stops at Kubernetes' own API.
"""
