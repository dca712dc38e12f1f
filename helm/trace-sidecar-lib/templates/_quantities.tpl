{{/*
Kubernetes quantities ("250m", "1.5Gi", "1e3", 192000000) and the sidecar's own sizes ("64MiB", "1.5gib").
Their amounts are compared as decimal digits: int64 overflows where Kubernetes does not, and float64
rounds. The schema has checked the spelling.

trace-sidecar.text: a value as text. Numbers in YAML and JSON are float64 here, and 192000000 would
print as 1.92e+08.
*/}}
{{- define "trace-sidecar.text" -}}
{{- if kindIs "string" . }}{{ trim . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{/*
trace-sidecar.amount: the digits of a quantity in billionths (the precision of Kubernetes), rounded
up as the API server does. Takes (dict "value" V "what" NAME), and "size" for the sidecar's own sizes,
whose units are case-insensitive and may end in b. Fails for nothing, and for more than 2^63-1 thousandths,
which is where the API server's own sums overflow.
*/}}
{{- define "trace-sidecar.amount" -}}
{{- $text := include "trace-sidecar.text" .value -}}
{{- $number := regexFind "^[+]?[0-9.]+" $text -}}
{{- $rest := $text | trimPrefix $number -}}
{{- $exponent := regexFind "^[eE][+-]?[0-9]+" $rest -}}
{{- $unit := $rest | trimPrefix $exponent | trim -}}
{{- if .size }}{{ $unit = lower $unit | trimSuffix "b" | title }}{{ end -}}
{{- $binary := splitList " " "Ki Mi Gi Ti Pi Ei" -}}
{{- $powers := dict "n" -9 "u" -6 "m" -3 "k" 3 "K" 3 "M" 6 "G" 9 "T" 12 "P" 15 "E" 18 -}}
{{- $parts := splitList "." (trimPrefix "+" $number) -}}
{{- $fraction := rest $parts | join "" -}}
{{- $digits := print (first $parts) $fraction -}}
{{- range $at, $name := $binary -}}
{{- if eq $name $unit -}}
{{- range until (int (add1 $at)) }}{{ $digits = include "trace-sidecar.times" (list $digits 1024) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $power := add 9 (get $powers $unit | default 0) (regexReplaceAll "^[eE][+]?" $exponent "" | default "0" | atoi) -}}
{{- $places := sub $power (len $fraction) | int -}}
{{- if ge $places 0 -}}
{{- $digits = print $digits (repeat $places "0") -}}
{{- else -}}
{{- $digits = print (repeat (mul -1 $places | int) "0") $digits -}}
{{- $at := add (len $digits) $places | int -}}
{{- $cut := substr $at (len $digits) $digits -}}
{{- $digits = substr 0 $at $digits -}}
{{- if regexMatch "[1-9]" $cut }}{{ $digits = include "trace-sidecar.plus" (list $digits "1") }}{{ end -}}
{{- end -}}
{{- $digits = regexReplaceAll "^0+" $digits "" -}}
{{- if not $digits -}}
{{- fail (printf "%s (%s) must be above 0" .what $text) -}}
{{- end -}}
{{- if include "trace-sidecar.above" (list $digits "9223372036854775807000000") -}}
{{- fail (printf "%s (%s) is more than Kubernetes can count: 9223372036854775" .what $text) -}}
{{- end -}}
{{- $digits -}}
{{- end }}

{{/*
trace-sidecar.bytes: a quantity of bytes as text: as it was written, unless it has a fraction of a
byte, which is rounded up as the kubelet does. The API server would warn about it in every pod. Takes
what trace-sidecar.amount takes.
*/}}
{{- define "trace-sidecar.bytes" -}}
{{- $amount := include "trace-sidecar.amount" . -}}
{{- $text := include "trace-sidecar.text" .value -}}
{{- if include "trace-sidecar.above" (list "1048576000000000" $amount) -}}
{{- fail (printf "%s (%s) must be at least 1Mi" .what $text) -}}
{{- end -}}
{{- $whole := substr 0 (sub (len $amount) 9 | int) $amount -}}
{{- ternary $text (include "trace-sidecar.plus" (list $whole "1")) (hasSuffix "000000000" $amount) -}}
{{- end }}

{{/* trace-sidecar.times: digits times a number of at most 10^9. Takes (list DIGITS NUMBER). */}}
{{- define "trace-sidecar.times" -}}
{{- $digits := include "trace-sidecar.groups" (first .) -}}
{{- $by := last . -}}
{{- $result := "" -}}
{{- $carry := 0 -}}
{{- range $at := untilStep (len $digits) 0 -9 -}}
{{- $sum := add $carry (mul $by (substr (sub $at 9 | int) $at $digits | atoi)) -}}
{{- $result = printf "%09d%s" (mod $sum 1000000000) $result -}}
{{- $carry = div $sum 1000000000 -}}
{{- end -}}
{{- printf "%d%s" $carry $result | regexFind "[1-9].*" -}}
{{- end }}

{{/* trace-sidecar.plus: the sum of two numbers as digits. Takes (list DIGITS DIGITS). */}}
{{- define "trace-sidecar.plus" -}}
{{- $one := include "trace-sidecar.groups" (first .) -}}
{{- $other := include "trace-sidecar.groups" (last .) -}}
{{- $length := max (len $one) (len $other) | int -}}
{{- $one = print (repeat (sub $length (len $one) | int) "0") $one -}}
{{- $other = print (repeat (sub $length (len $other) | int) "0") $other -}}
{{- $result := "" -}}
{{- $carry := 0 -}}
{{- range $at := untilStep $length 0 -9 -}}
{{- $from := sub $at 9 | int -}}
{{- $sum := add $carry (substr $from $at $one | atoi) (substr $from $at $other | atoi) -}}
{{- $result = printf "%09d%s" (mod $sum 1000000000) $result -}}
{{- $carry = div $sum 1000000000 -}}
{{- end -}}
{{- printf "%d%s" $carry $result | regexFind "[1-9].*" -}}
{{- end }}

{{/* trace-sidecar.groups: digits, with zeros before them up to whole groups of nine. */}}
{{- define "trace-sidecar.groups" -}}
{{- print (repeat (mod (sub 9 (mod (len .) 9)) 9 | int) "0") . -}}
{{- end }}

{{/* trace-sidecar.above: true if the first digits are more than the second, else nothing. */}}
{{- define "trace-sidecar.above" -}}
{{- $one := first . -}}
{{- $other := last . -}}
{{- if or (gt (len $one) (len $other)) (and (eq (len $one) (len $other)) (gt $one $other)) -}}true{{- end -}}
{{- end }}
