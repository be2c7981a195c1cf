{{- define "pdserve.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "pdserve.operator" -}}
{{ include "pdserve.fullname" . }}-operator
{{- end }}

{{- /* Releases of one name in two namespaces must not meet in what has no namespace. */ -}}
{{- define "pdserve.clusterwide" -}}
{{ .Release.Namespace }}:{{ include "pdserve.operator" . }}
{{- end }}

{{- define "pdserve.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "pdserve.labels" -}}
{{ include "pdserve.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: pdserve
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "pdserve.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "pdserve.operator" .) .Values.serviceAccount.name }}{{ else }}{{ required "serviceAccount.name: name the existing account to use when serviceAccount.create is false" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "pdserve.image" -}}
{{- $tag := default .root.Chart.AppVersion .root.Values.images.tag -}}
{{- with .root.Values.images.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .repository }}
{{- if not (contains "@" .repository) }}:{{ $tag }}{{ end }}
{{- end }}

{{- define "pdserve.topologySpread" -}}
{{- $own := dict "matchLabels" (include "pdserve.selectorLabels" . | fromYaml) -}}
{{- $all := list -}}
{{- range .Values.operator.topologySpreadConstraints }}
{{- $all = append $all (hasKey . "labelSelector" | ternary . (merge (dict "labelSelector" $own) .)) }}
{{- end }}
{{- toYaml $all }}
{{- end }}

{{- /* What the schema cannot say: values that contradict each other. */ -}}
{{- define "pdserve.validate" -}}
{{- $ratio := .Values.ratio }}
{{- if gt (float64 $ratio.fastPeriodSeconds) (float64 $ratio.controlPeriodSeconds) }}
{{- fail (printf "ratio.fastPeriodSeconds (%v) must not be longer than ratio.controlPeriodSeconds (%v)" $ratio.fastPeriodSeconds $ratio.controlPeriodSeconds) }}
{{- end }}
{{- /* Not kubeVersion of Chart.yaml: `helm template` without a cluster may take any version for it.
1.30: `preStop: {sleep: ...}`, by which gateways leave their Service, and admission policies. */ -}}
{{- if and (.Capabilities.APIVersions.Has "v1/Pod") (semverCompare "<1.30.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "Kubernetes is %s: pdserve needs 1.30 or newer" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- $free := list "control-period" "fast-period" "metrics-window" "workers" "resync" "api-rate" "api-burst" "decisions-log" "claim-namespace" }}
{{- $set := dict "allowed-pod-fields" "security.allowedPodFields" "authors-checked" "security.admissionPolicy" "namespace" "operator.watchNamespace" "prometheus-url" "prometheus.url" "prometheus-token-file" "prometheus.auth" "prometheus-username-file" "prometheus.auth" "prometheus-password-file" "prometheus.auth" "prometheus-ca-file" "prometheus.ca" "gateway-image" "images.gateway" "model-cache" "modelCache.hostPath" "model-cache-namespaces" "modelCache.namespaces" "log-format" "operator.logFormat" "log-level" "operator.logLevel" "bind" "" "metrics-port" "" "lease-name" "" "lease-namespace" "" "kubeconfig" "" "no-leader-election" "" }}
{{- range $argument := .Values.operator.extraArgs }}
{{- $flag := regexFind "^--[a-z-]+" $argument | trimPrefix "--" }}
{{- if hasKey $set $flag }}
{{- $value := get $set $flag }}
{{- fail (printf "operator.extraArgs: --%s is the chart's to set; %s" $flag ($value | empty | ternary "leave it out" (printf "set %s instead" $value))) }}
{{- end }}
{{- if not (has $flag $free) }}
{{- fail (printf "operator.extraArgs: --%s is no flag of the operator; known: --%s" $flag (join ", --" $free)) }}
{{- end }}
{{- end }}
{{- end }}
