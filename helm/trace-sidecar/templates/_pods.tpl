{{/*
Which pods get the sidecar, and what it gets from them, as CEL. Where a template speaks of a
container, the expression calls it `c`. All take the chart's scope.

A namespace's label reaches every pod in it, so this decides for the pods that have nothing to do
with agents: they must not notice.
*/}}

{{/* Whether the pod has the sidecar. */}}
{{- define "trace-sidecar.present" -}}
(object.spec.containers.exists(c, c.name == "trace-sidecar") || (has(object.spec.initContainers) && object.spec.initContainers.exists(c, c.name == "trace-sidecar")))
{{- end }}

{{/* Whether the pod asks for the sidecar by its own label. */}}
{{- define "trace-sidecar.optedIn" -}}
(has(object.metadata.labels) && object.metadata.labels.exists(l, l == "{{ .Values.injection.podLabel }}" && object.metadata.labels[l] == "true"))
{{- end }}

{{/*
Whether there is no place for the sidecar. On the host network, two sidecars would use the same ports
of the node. The image is for Linux. The kubelet's own pods may refer to no Secret and no ConfigMap. As
an ordinary container, it would keep a Job from completing.
*/}}
{{- define "trace-sidecar.elsewhere" -}}
((has(object.spec.hostNetwork) && object.spec.hostNetwork) ||
(has(object.spec.os) && object.spec.os.name != "linux") ||
(has(object.spec.nodeSelector) && object.spec.nodeSelector.exists(l, l in ["kubernetes.io/os", "beta.kubernetes.io/os"] && object.spec.nodeSelector[l] != "linux")) ||
(has(object.spec.securityContext) && has(object.spec.securityContext.windowsOptions)) ||
object.spec.containers.exists(c, has(c.securityContext) && has(c.securityContext.windowsOptions)) ||
(has(object.spec.affinity) && has(object.spec.affinity.nodeAffinity) && has(object.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution) &&
object.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms.exists(t, has(t.matchExpressions) && t.matchExpressions.exists(m,
m.key in ["kubernetes.io/os", "beta.kubernetes.io/os"] && has(m.values) && (m.operator == "In" ? !("linux" in m.values) : m.operator == "NotIn" && "linux" in m.values)))) ||
{{- if eq .Values.sidecar.mode "container" }}
(has(object.spec.restartPolicy) && object.spec.restartPolicy != "Always") ||
{{- end }}
(has(object.metadata.annotations) && object.metadata.annotations.exists(a, a == "kubernetes.io/config.mirror")))
{{- end }}

{{/* Whether a container is one of the agent's. */}}
{{- define "trace-sidecar.isAgent" -}}
{{- with .Values.injection.agentContainers -}}c.name in {{ toJson . }}{{- else -}}c.name != "trace-sidecar"{{- end -}}
{{- end }}

{{/* The names of the sidecar's own variables that have a value, as a JSON list. */}}
{{- define "trace-sidecar.ownVariables" -}}
{{- $names := list -}}
{{- range include "trace-sidecar.settings" .Subcharts.sidecar | fromYamlArray -}}
{{- if or .valueFrom (trim (toString (.value | default ""))) }}{{ $names = append $names .name }}{{ end -}}
{{- end -}}
{{ toJson $names }}
{{- end }}

{{/* The names of the variables, except proxies, that the sidecar gets from the agent, as a JSON list. */}}
{{- define "trace-sidecar.takenVariables" -}}
{{- $own := list -}}
{{- range include "trace-sidecar.settings" .Subcharts.sidecar | fromYamlArray }}{{ $own = append $own .name }}{{ end -}}
{{- $names := list -}}
{{- range .Values.injection.copyEnv -}}
{{- if not (or (has . $own) (regexMatch "(?i)^(https?|all|no)_proxy$" .)) }}{{ $names = append $names . }}{{ end -}}
{{- end -}}
{{ toJson $names }}
{{- end }}

{{/*
Whether the sidecar can take over a variable `e` with a value: not a URL of the sidecar itself, and no
value that refers to other variables, because these are not copied.
*/}}
{{- define "trace-sidecar.canBeTaken" -}}
(has(e.valueFrom) || (has(e.value) && e.value.matches("\\S") && !e.value.contains("$(") && !e.value.matches({{ include "trace-sidecar.ownAddress" .Subcharts.sidecar | toJson }})))
{{- end }}

{{/* Whether the variables of a container give the sidecar one of `names`. Takes (list SCOPE NAMES). */}}
{{- define "trace-sidecar.gives" -}}
{{- $scope := first . -}}
{{- $names := list -}}
{{- $taken := include "trace-sidecar.takenVariables" $scope | fromJsonArray -}}
{{- range last . }}{{ if has . $taken }}{{ $names = append $names . }}{{ end }}{{ end -}}
{{- if $names -}}
c.env.exists(e, e.name in {{ toJson $names }} && {{ include "trace-sidecar.canBeTaken" $scope }})
{{- else -}}
false
{{- end -}}
{{- end }}

{{/*
Whether a container has a ConfigMap or Secret as a whole in its variables, and an upstream may be in
it, as far as the prefix of the names tells.
*/}}
{{- define "trace-sidecar.hasUnseen" -}}
{{- $names := list -}}
{{- $taken := include "trace-sidecar.takenVariables" . | fromJsonArray -}}
{{- range list "AGENTEX_BASE_URL" "SGP_API_KEY" "SGP_ACCOUNT_ID" }}{{ if has . $taken }}{{ $names = append $names . }}{{ end }}{{ end -}}
(has(c.envFrom) && c.envFrom.exists(s, !has(s.prefix) || {{ toJson $names }}.exists(n, n != s.prefix && n.startsWith(s.prefix))))
{{- end }}

{{/*
Whether a container has an SGP of its own whose address the sidecar can't take over. Then it gets none
of SGP's variables: with the key alone, it would send the spans to SGP's default address.
*/}}
{{- define "trace-sidecar.sgpElsewhere" -}}
{{- if include "trace-sidecar.sgpUrlInValues" . -}}
false
{{- else -}}
{{- $taken := has "SGP_CLIENT_BASE_URL" (include "trace-sidecar.takenVariables" . | fromJsonArray) -}}
(has(c.env) && c.env.exists(e, e.name == "SGP_CLIENT_BASE_URL" && {{ if not $taken }}(has(e.valueFrom) || {{ end }}has(e.value) && {{ if $taken }}e.value.contains("$("){{ else }}!e.value.matches({{ include "trace-sidecar.ownAddress" .Subcharts.sidecar | toJson }})){{ end }}))
{{- end -}}
{{- end }}

{{/* Whether the values have the address of SGP, else "". */}}
{{- define "trace-sidecar.sgpUrlInValues" -}}
{{- regexFind "\"(SIDECAR_SGP__BASE_URL|SGP_CLIENT_BASE_URL)\"" (include "trace-sidecar.ownVariables" .) -}}
{{- end }}

{{/* Whether the values name an upstream ("agentex", "sgp", "otlp"), else "". Takes (list SCOPE UPSTREAM). */}}
{{- define "trace-sidecar.inValues" -}}
{{- $own := include "trace-sidecar.ownVariables" (first .) | fromJsonArray -}}
{{- if eq (last .) "agentex" -}}
{{- if or (has "SIDECAR_AGENTEX__BASE_URL" $own) (has "AGENTEX_BASE_URL" $own) }}agentex{{ end -}}
{{- else if eq (last .) "otlp" -}}
{{- if has "SIDECAR_OTLP__ENDPOINT" $own }}otlp{{ end -}}
{{- else -}}
{{- $key := or (has "SIDECAR_SGP__API_KEY_FILE" $own) (has "SGP_API_KEY" $own) -}}
{{- $account := or (has "SIDECAR_SGP__ACCOUNT_ID" $own) (has "SGP_ACCOUNT_ID" $own) -}}
{{- if or (and $key $account) (dig "sgp" "relay" false (first .).Values.sidecar.config) }}sgp{{ end -}}
{{- end -}}
{{- end }}

{{/* Whether the values name an upstream, else "". */}}
{{- define "trace-sidecar.anyInValues" -}}
{{- range $upstream := list "agentex" "sgp" "otlp" }}{{ include "trace-sidecar.inValues" (list $ $upstream) }}{{ end -}}
{{- end }}

{{/* Whether a container's variables, with those of the values, name SGP: a key and an account. */}}
{{- define "trace-sidecar.namesSgp" -}}
{{- $own := include "trace-sidecar.ownVariables" . | fromJsonArray -}}
{{- $key := or (has "SIDECAR_SGP__API_KEY_FILE" $own) (has "SGP_API_KEY" $own) -}}
{{- $account := or (has "SIDECAR_SGP__ACCOUNT_ID" $own) (has "SGP_ACCOUNT_ID" $own) -}}
(has(c.env) && !{{ include "trace-sidecar.sgpElsewhere" . }} && {{ ternary "true" (include "trace-sidecar.gives" (list . (list "SGP_API_KEY"))) $key }} && {{ ternary "true" (include "trace-sidecar.gives" (list . (list "SGP_ACCOUNT_ID"))) $account }})
{{- end }}

{{/* Whether a container's variables name an upstream. */}}
{{- define "trace-sidecar.namesUpstream" -}}
((has(c.env) && {{ include "trace-sidecar.gives" (list . (list "AGENTEX_BASE_URL")) }}) || {{ include "trace-sidecar.namesSgp" . }})
{{- end }}

{{/*
Whether a pod in an opted-in namespace is to have the sidecar: it asks for it, or one of its agents'
containers has an upstream, as far as can be seen: in the values, in its variables, or perhaps in what
its `envFrom` refers to.
*/}}
{{- define "trace-sidecar.wanted" -}}
({{ include "trace-sidecar.optedIn" . }} || object.spec.containers.exists(c, {{ include "trace-sidecar.isAgent" . }}
{{- if not (include "trace-sidecar.anyInValues" .) }} && ({{ include "trace-sidecar.namesUpstream" . }} || {{ include "trace-sidecar.hasUnseen" . }}){{ end }}))
{{- end }}

{{/*
Whether the sidecar's SGP is that of an agent's container `c`: the values have its address, or `c` has
the same variables of SGP as the source. Otherwise its spans would go to another SGP, or with another
key.
*/}}
{{- define "trace-sidecar.sameSgp" -}}
{{- if include "trace-sidecar.sgpUrlInValues" . -}}
true
{{- else -}}
{{- $names := toJson (list "SGP_CLIENT_BASE_URL" "SGP_API_KEY" "SGP_ACCOUNT_ID") -}}
(!{{ include "trace-sidecar.sgpElsewhere" . }} && variables.source.exists(s, s.name == c.name || (
(has(s.env) ? s.env.filter(e, e.name in {{ $names }}) : []) == (has(c.env) ? c.env.filter(e, e.name in {{ $names }}) : []) &&
(has(s.envFrom) ? s.envFrom : []) == (has(c.envFrom) ? c.envFrom : []))))
{{- end -}}
{{- end }}

{{/* Whether a pod asks for the sidecar, or an agent's container has variables of an upstream. */}}
{{- define "trace-sidecar.tracing" -}}
({{ include "trace-sidecar.optedIn" . }} || object.spec.containers.exists(c, {{ include "trace-sidecar.isAgent" . }} && {{ include "trace-sidecar.namesUpstream" . }}))
{{- end }}
