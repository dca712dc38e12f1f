{{/*
trace-sidecar.kubernetes: the cluster's version as one number, 1036 for 1.36. Vendors append to any
part: v1.36.2-gke.100, v1.36+. Takes .Capabilities.KubeVersion.Version.
*/}}
{{- define "trace-sidecar.kubernetes" -}}
{{- $numbers := regexFind "[0-9]+[.][0-9]+" . | splitList "." -}}
{{- add (mul 1000 (index $numbers 0 | int)) (index $numbers 1 | int) -}}
{{- end }}

{{/*
trace-sidecar.supported: fails if the cluster is too old for native sidecars: it would refuse the pod,
or wait for the sidecar's end before it starts the agent. A scope without .Capabilities is the
injection's, which needs a newer cluster anyway.
*/}}
{{- define "trace-sidecar.supported" -}}
{{- if and (eq .Values.mode "native") .Capabilities -}}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- if lt (include "trace-sidecar.kubernetes" $version | int) 1029 -}}
{{- fail (printf "mode: native needs Kubernetes 1.29, and this cluster has %s: set mode: container" $version) -}}
{{- end -}}
{{- end -}}
{{- end }}
