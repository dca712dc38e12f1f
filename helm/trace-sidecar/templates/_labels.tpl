{{/*
trace-sidecar.labels: the labels of every object, with commonLabels.

trace-sidecar.objectLabels: the same for an object with labels of its own, which take precedence over
commonLabels. Takes (list $ LABELS). Fails for a label that the chart sets itself: selectors of
others rely on it, and a map with a key twice is not valid YAML.
*/}}
{{- define "trace-sidecar.labels" -}}
{{- include "trace-sidecar.objectLabels" (list . dict) -}}
{{- end }}

{{- define "trace-sidecar.objectLabels" -}}
{{- $root := index . 0 -}}
{{- $chart := include "trace-sidecar.chartLabels" $root | fromYaml -}}
{{- range $where, $labels := dict "commonLabels" $root.Values.commonLabels "labels" (index . 1) -}}
{{- range $name, $value := $labels -}}
{{- if or (hasKey $chart $name) (eq $name $root.Values.injection.podLabel) -}}
{{- fail (printf "%s: the chart sets the label %s itself" $where $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml (merge (dict) $chart (index . 1) $root.Values.commonLabels) -}}
{{- end }}

{{/* trace-sidecar.chartLabels: the chart's own labels. */}}
{{- define "trace-sidecar.chartLabels" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}
