{{- define "trace-sidecar.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "trace-sidecar.labels" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* For both policies: new pods in opted-in namespaces, except those that opted out. */}}
{{- define "trace-sidecar.matchConstraints" -}}
{{- $injection := .Values.injection -}}
{{- $inject := dict "key" $injection.podLabel "operator" "NotIn" "values" (list "false") -}}
{{- $selector := deepCopy $injection.podSelector -}}
{{- $_ := set $selector "matchExpressions" (append ($selector.matchExpressions | default list) $inject) -}}
matchPolicy: Equivalent
resourceRules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
namespaceSelector:
  matchLabels:
    {{ $injection.namespaceLabel.name }}: {{ $injection.namespaceLabel.value | quote }}
objectSelector:
  {{- toYaml $selector | nindent 2 }}
{{- end }}

{{/* Whether the pod has the sidecar, as CEL. */}}
{{- define "trace-sidecar.present" -}}
object.spec.containers.exists(c, c.name == "trace-sidecar") || (has(object.spec.initContainers) && object.spec.initContainers.exists(c, c.name == "trace-sidecar"))
{{- end }}

{{/*
Conditions of both policies for the pods that should have the sidecar. On the host network, two
sidecars would use the same ports of the node. The image is for Linux.
*/}}
{{- define "trace-sidecar.eligible" -}}
- name: own-network
  expression: "!has(object.spec.hostNetwork) || !object.spec.hostNetwork"
- name: linux
  expression: "!has(object.spec.os) || object.spec.os.name == 'linux'"
{{- end }}
