{{/* Where NATS is, and who connects to it. */}}

{{- define "starling.nats.name" -}}
{{- printf "%s-nats" (include "starling.fullname" .) -}}
{{- end -}}

{{- define "starling.nats.headless" -}}
{{- printf "%s-headless" (include "starling.nats.name" .) -}}
{{- end -}}

{{- define "starling.nats.url" -}}
{{- if .Values.nats.bundled.enabled -}}
{{- printf "nats://%s.%s.svc:4222" (include "starling.nats.name" .) .Release.Namespace -}}
{{- else -}}
{{- .Values.nats.external.url -}}
{{- end -}}
{{- end -}}

{{/* Host and port of the monitoring page, empty where nobody said. KEDA looks for the leader of a consumer by putting
     a server's name before this host, which only a headless Service answers. */}}
{{- define "starling.nats.monitoring" -}}
{{- if .Values.nats.bundled.enabled -}}
{{- printf "%s.%s.svc.%s:8222" (include "starling.nats.headless" .) .Release.Namespace .Values.clusterDomain -}}
{{- else -}}
{{- .Values.nats.external.monitoring.endpoint -}}
{{- end -}}
{{- end -}}

{{- define "starling.nats.monitoringScheme" -}}
{{- ternary "https" "http" (and (not .Values.nats.bundled.enabled) .Values.nats.external.monitoring.https) -}}
{{- end -}}

{{/* How users prove who they are: nkey, creds or none. */}}
{{- define "starling.nats.auth" -}}
{{- if and .Values.nats.bundled.enabled .Values.nats.bundled.auth.insecure -}}none{{- else -}}{{- .Values.nats.auth.type -}}{{- end -}}
{{- end -}}

{{/* The account that holds the streams: the prefix in capitals, or the only one there is. */}}
{{- define "starling.nats.account" -}}
{{- if .Values.nats.account -}}
{{- .Values.nats.account -}}
{{- else -}}
{{- ternary "$G" (include "starling.stream" .) (eq (include "starling.nats.auth" .) "none") -}}
{{- end -}}
{{- end -}}

{{- define "starling.stream" -}}
{{- .Values.mesh.prefix | upper | replace "." "_" -}}
{{- end -}}

{{/* The Secrets for TLS, as a map: ca, caKey, client, certKey, keyKey. Empty strings where there are none. */}}
{{- define "starling.nats.tls" -}}
{{- if .Values.nats.bundled.enabled -}}
{{- $tls := .Values.nats.bundled.tls -}}
{{- dict "ca" $tls.existingSecret "caKey" $tls.caKey "client" "" | toJson -}}
{{- else -}}
{{- $tls := .Values.nats.external.tls -}}
{{- dict "ca" $tls.ca.existingSecret "caKey" $tls.ca.key "client" $tls.client.existingSecret "certKey" $tls.client.certKey "keyKey" $tls.client.keyKey | toJson -}}
{{- end -}}
{{- end -}}

{{/* Who a process is to NATS, as a map: user, secret. Takes root and the values that may name them. */}}
{{- define "starling.nats.identity" -}}
{{- $user := .said.user | default .user -}}
{{- $secret := .said.existingSecret | default (printf "%s-user-%s" .root.Release.Name $user) -}}
{{- dict "user" $user "secret" $secret | toJson -}}
{{- end -}}

{{/* Environment of one user; what all have in common stands in the ConfigMap. */}}
{{- define "starling.nats.env" -}}
{{- $auth := include "starling.nats.auth" .root -}}
{{- if eq $auth "nkey" }}
- name: MESH_NATS_NKEY_SEED
  value: /etc/starling/nats/{{ .root.Values.nats.auth.key | default "seed" }}
{{- else if eq $auth "creds" }}
- name: MESH_NATS_CREDS
  value: /etc/starling/nats/{{ .root.Values.nats.auth.key | default "creds" }}
{{- end }}
{{- if ne $auth "none" }}
- name: MESH_NATS_INBOX_PREFIX
  value: {{ printf "_INBOX_%s" .identity.user }}
{{- end }}
{{- end -}}

{{- define "starling.nats.volumeMounts" -}}
{{- $tls := include "starling.nats.tls" .root | fromJson -}}
{{- if ne (include "starling.nats.auth" .root) "none" }}
- name: nats-user
  mountPath: /etc/starling/nats
  readOnly: true
{{- end }}
{{- if or $tls.ca $tls.client }}
- name: nats-tls
  mountPath: /etc/starling/nats-tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "starling.nats.volumes" -}}
{{- $tls := include "starling.nats.tls" .root | fromJson -}}
{{- $auth := include "starling.nats.auth" .root -}}
{{- if ne $auth "none" }}
{{- $key := .root.Values.nats.auth.key | default (ternary "seed" "creds" (eq $auth "nkey")) }}
- name: nats-user
  secret:
    secretName: {{ .identity.secret }}
    # For the pod's group alone (0440 in octal).
    defaultMode: 288
    items:
      - key: {{ $key }}
        path: {{ $key }}
{{- end }}
{{- if or $tls.ca $tls.client }}
- name: nats-tls
  projected:
    defaultMode: 288
    sources:
      {{- if $tls.ca }}
      - secret:
          name: {{ $tls.ca }}
          items:
            - key: {{ $tls.caKey }}
              path: ca.crt
      {{- end }}
      {{- if $tls.client }}
      - secret:
          name: {{ $tls.client }}
          items:
            - key: {{ $tls.certKey }}
              path: tls.crt
            - key: {{ $tls.keyKey }}
              path: tls.key
      {{- end }}
{{- end }}
{{- end -}}
