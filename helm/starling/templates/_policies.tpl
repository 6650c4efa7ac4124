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
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
  {{- with .Values.networkPolicy.dns.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* NATS's client port, and its monitoring page, which `mesh doctor` reads. */}}
{{- define "starling.policy.nats" -}}
{{- if .Values.nats.bundled.enabled -}}
- ports:
    - port: 4222
      protocol: TCP
    - port: 8222
      protocol: TCP
  to:
    - podSelector:
        matchLabels:
          {{- include "starling.selectorLabels" (dict "root" . "component" "nats") | nindent 10 }}
{{- else -}}
- ports:
    {{- range include "starling.nats.ports" . | fromJsonArray }}
    - port: {{ int . }}
      protocol: TCP
    {{- end }}
  {{- with .Values.networkPolicy.nats.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{/* Ports of the external NATS, as a JSON list; 4222 where an address has none. */}}
{{- define "starling.nats.ports" -}}
{{- $ports := list -}}
{{- range splitList "," .Values.nats.external.url -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trim .) | trimPrefix ":" | default "4222" | int) -}}
{{- end -}}
{{- with .Values.nats.external.monitoring.endpoint -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" . | trimPrefix ":" | default "8222" | int) -}}
{{- end -}}
{{- uniq $ports | toJson -}}
{{- end -}}
