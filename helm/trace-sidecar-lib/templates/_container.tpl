{{/*
Every template here takes the library's own scope: .Subcharts.<alias or name of the dependency>.

trace-sidecar.container: the sidecar, as one item of a list of containers. This is its only
definition: the injection policy and the kustomize component are generated from it.
*/}}
{{- define "trace-sidecar.container" -}}
{{- include "trace-sidecar.valid" . -}}
{{- include "trace-sidecar.supported" . -}}
{{- $values := .Values -}}
- name: trace-sidecar
  image: {{ include "trace-sidecar.image" . | quote }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  args: [run]
  {{- if eq $values.mode "native" }}
  restartPolicy: Always
  {{- end }}
  ports:
    - name: ts-admin
      containerPort: {{ $values.config.admin.port }}
      protocol: TCP
  env:
    {{- include "trace-sidecar.settings" . | trim | nindent 4 }}
  resources:
    {{- include "trace-sidecar.resources" . | trim | nindent 4 }}
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  startupProbe:
    httpGet:
      path: /readyz
      port: {{ $values.config.admin.port }}
    periodSeconds: {{ $values.probes.startup.periodSeconds }}
    failureThreshold: {{ $values.probes.startup.failureThreshold }}
  livenessProbe:
    httpGet:
      path: /livez
      port: {{ $values.config.admin.port }}
    periodSeconds: {{ $values.probes.liveness.periodSeconds }}
    timeoutSeconds: {{ $values.probes.liveness.timeoutSeconds }}
    failureThreshold: {{ $values.probes.liveness.failureThreshold }}
  {{- if $values.probes.readiness.enabled }}
  readinessProbe:
    httpGet:
      path: /readyz
      port: {{ $values.config.admin.port }}
    periodSeconds: {{ $values.probes.readiness.periodSeconds }}
  {{- end }}
  {{- include "trace-sidecar.fits" . }}
  {{- with include "trace-sidecar.volumeMounts" . }}
  volumeMounts:
    {{- . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* trace-sidecar.resources: requests and limits, each as text that the API server takes. */}}
{{- define "trace-sidecar.resources" -}}
{{- range $kind, $of := .Values.resources }}
{{- with $of }}
{{ $kind }}:
  {{- range $name, $value := . }}
  {{ $name }}: {{ include (ternary "trace-sidecar.bytes" "trace-sidecar.text" (eq $name "memory")) (ternary (dict "value" $value "what" (printf "resources.%s.memory" $kind)) $value (eq $name "memory")) | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* trace-sidecar.initContainers: the container if it is a native sidecar, else nothing. */}}
{{- define "trace-sidecar.initContainers" -}}
{{- include "trace-sidecar.scope" . -}}
{{- if eq .Values.mode "native" }}{{ include "trace-sidecar.container" . }}{{ end }}
{{- end }}

{{/* trace-sidecar.containers: the container if it is an ordinary one, else nothing. */}}
{{- define "trace-sidecar.containers" -}}
{{- include "trace-sidecar.scope" . -}}
{{- if eq .Values.mode "container" }}{{ include "trace-sidecar.container" . }}{{ end }}
{{- end }}

{{/* trace-sidecar.image: repository, tag and digest as one reference. */}}
{{- define "trace-sidecar.image" -}}
{{- $image := .Values.image -}}
{{- $image.repository -}}
{{- if or $image.tag (not $image.digest) }}:{{ $image.tag | default .Chart.AppVersion }}{{ end -}}
{{- if $image.digest }}@{{ $image.digest }}{{ end -}}
{{- end }}
