{{/* Parts of network policies. */}}

{{- define "starling.policy.mesh" -}}
matchLabels:
  {{- include "starling.selectorLabels" (dict "root" .root) | nindent 2 }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [{{ join ", " .components }}]
{{- end -}}

{{/* Any resolver: where a cluster's runs, and under which labels, differs from one to the next. */}}
{{- define "starling.policy.dns" -}}
- ports:
    {{- range .Values.networkPolicy.dns.ports | default (list 53) }}
    - port: {{ int . }}
      protocol: UDP
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
  {{- with .Values.networkPolicy.dns.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* To NATS: `what` is client or monitoring. Empty where the external one has no monitoring page. */}}
{{- define "starling.policy.nats" -}}
{{- $ports := list -}}
{{- if .root.Values.nats.bundled.enabled -}}
{{- $ports = list (ternary 4222 8222 (eq .what "client")) -}}
{{- else if eq .what "client" -}}
{{- range splitList "," .root.Values.nats.external.url -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trim .) | trimPrefix ":" | default "4222" | int) -}}
{{- end -}}
{{- else -}}
{{- with .root.Values.nats.external.monitoring.endpoint -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | int) -}}
{{- end -}}
{{- end -}}
{{- if $ports -}}
- ports:
    {{- range uniq $ports }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
  {{- if .root.Values.nats.bundled.enabled }}
  to:
    - podSelector:
        matchLabels:
          {{- include "starling.selectorLabels" (dict "root" .root "component" "nats") | nindent 10 }}
  {{- else if .root.Values.networkPolicy.nats.to }}
  to:
    {{- toYaml .root.Values.networkPolicy.nats.to | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}
