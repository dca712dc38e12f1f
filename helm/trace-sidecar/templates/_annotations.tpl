{{/*
trace-sidecar.annotationMutations: a mutation that gives the pod the annotations by which Prometheus
scrapes the sidecar. Takes the library's scope. A pod that has an annotation of prometheus.io already
stays as it is: the convention has one port for each pod, and the agent's is the one that was meant.
*/}}
{{- define "trace-sidecar.annotationMutations" -}}
{{- $annotations := include "trace-sidecar.podAnnotations" . | fromYaml -}}
- patchType: JSONPatch
  jsonPatch:
    # In a path of JSON Patch, "~1" is "/".
    expression: >-
      has(object.metadata.annotations) && object.metadata.annotations.exists(name, name.startsWith("prometheus.io/")) ? [] :
      (has(object.metadata.annotations) ? [] :
      [JSONPatch{op: "add", path: "/metadata/annotations", value: {}}])
      {{- range $name, $value := $annotations }}
      + [JSONPatch{op: "add", path: "/metadata/annotations/{{ replace "/" "~1" $name }}", value: {{ toJson $value }}}]
      {{- end }}
{{- end }}
