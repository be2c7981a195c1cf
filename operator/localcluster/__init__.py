"""A real Kubernetes cluster on one Linux machine, without root and without containers.

A real control plane (etcd, kube-apiserver, kube-controller-manager, kube-scheduler) runs as
ordinary processes on loopback. One node agent stands for the kubelets of all nodes: it runs pods
as local processes. The demo and the tests use such a cluster; `pdserve local` starts and ends it.
This package covers Kubernetes' own API only; prefill and decode do not occur in it.
"""
