{{- define "trace-sidecar.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* For both policies: new pods in opted-in namespaces, except those that opted out. _pods.tpl has the rest. */}}
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

{{/*
trace-sidecar.noProxyMutations: mutations that keep the agent's posts for the sidecar from its proxy,
for the containers whose SGP client posts to it. Takes the library's scope.

Clients read NO_PROXY or no_proxy, and prefer one of them if there are both. So what a container has
gets the loopback names that it lacks, and nothing that it has is hidden: NO_PROXY is new only where
there is neither.

- "*" stays as it is, because many clients take it only if it is alone.
- A reference to a ConfigMap or Secret is renamed, and gets a successor that refers to it. Two entries
  of one name have the same effect, but the API server warns about them, and some tools drop one.
- What `envFrom` has can't be seen, but an entry of the same name can refer to it. If there is none,
  the kubelet leaves the reference as it is: a name of no host.
*/}}
{{- define "trace-sidecar.noProxyMutations" -}}
{{- $loopback := include "trace-sidecar.loopback" . -}}
{{- $env := `"/spec/containers/" + string(object.spec.containers.indexOf(c)) + "/env/"` -}}
{{- range $name := list "NO_PROXY" "no_proxy" }}
{{- $has := printf "c.env.exists(e, e.name == %q)" $name }}
{{- $at := printf "c.env.map(e, e.name).lastIndexOf(%q)" $name }}
{{- $entry := printf "c.env[%s]" $at }}
{{- $kept := printf "TRACE_SIDECAR_KEPT_%s" $name }}
- patchType: JSONPatch
  jsonPatch:
    expression: >-
      {{- if eq $name "NO_PROXY" }}
      variables.pointed.filter(c, !c.env.exists(e, e.name in ["NO_PROXY", "no_proxy"])).map(c, JSONPatch{op: "add",
      path: {{ $env }} + "-", value: Object.spec.containers.env{name: "NO_PROXY",
      value: {{ toJson $.Values.agent.noProxy }} + (has(c.envFrom) ? "{{ with $.Values.agent.noProxy }},{{ end }}$(NO_PROXY),$(no_proxy)" : "")}})
      {{- else }}
      variables.pointed.filter(c, has(c.envFrom) && !{{ $has }} &&
      !c.env.exists(e, e.name == "NO_PROXY" && has(e.value) && e.value == "*")).map(c, JSONPatch{op: "add",
      path: {{ $env }} + "-", value: Object.spec.containers.env{name: "no_proxy", value: "$(NO_PROXY),$(no_proxy)"}})
      {{- end }}
      + variables.pointed.filter(c, {{ $has }} && has({{ $entry }}.valueFrom)).map(c, JSONPatch{op: "add",
      path: {{ $env }} + string({{ $at }} + 1),
      value: Object.spec.containers.env{name: "{{ $name }}", value: "$({{ $kept }})"}})
      + variables.pointed.filter(c, {{ $has }} && has({{ $entry }}.valueFrom)).map(c, JSONPatch{op: "replace",
      path: {{ $env }} + string({{ $at }}) + "/name", value: "{{ $kept }}"})
# The next one sees the result.
- patchType: JSONPatch
  jsonPatch:
    expression: >-
      variables.pointed.filter(c, {{ $has }} && !(has({{ $entry }}.value) && {{ $entry }}.value == "*")).map(c, JSONPatch{op: "add",
      path: {{ $env }} + string({{ $at }}) + "/value",
      value: [has({{ $entry }}.value) ? {{ $entry }}.value : ""].map(v, v.matches("^\\s*$") ? "{{ $loopback }}" : v
      {{- range splitList "," $loopback }}
      + (v.matches("(^|,)\\s*{{ replace "." "[.]" . }}\\s*(,|$)") ? "" : ",{{ . }}")
      {{- end }})[0]})
{{- end }}
{{- end }}
