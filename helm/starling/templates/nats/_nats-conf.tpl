{{/* nats.conf of the bundled servers. All read the same file; what differs, a server's name, comes from its environment. */}}
{{- define "starling.nats.conf" -}}
{{- $nats := .Values.nats.bundled -}}
{{- $tls := $nats.tls.existingSecret -}}
server_name: $POD_NAME
listen: 0.0.0.0:4222
http: 0.0.0.0:8222
pid_file: /var/run/nats/nats.pid
max_payload: {{ int64 $nats.maxPayload }}

# Before it ends a server sends its clients to the others, over this time.
lame_duck_grace_period: 5s
lame_duck_duration: {{ int $nats.lameDuckS }}s

jetstream {
  store_dir: /data
  max_memory_store: {{ $nats.jetstream.maxMemory }}
  max_file_store: {{ $nats.jetstream.maxFile }}
  # What is acknowledged is on the disk. The server's default keeps it in memory for up to two minutes.
  sync_interval: {{ $nats.jetstream.syncInterval }}
}
{{- if $tls }}

tls {
  cert_file: /etc/nats-tls/tls.crt
  key_file: /etc/nats-tls/tls.key
  ca_file: /etc/nats-tls/ca.crt
}
{{- end }}
{{- if gt (int $nats.replicas) 1 }}

cluster {
  name: {{ include "starling.nats.name" . }}
  listen: 0.0.0.0:6222
  # Clients come by the Service. KEDA finds the servers by the names of these routes.
  no_advertise: true
  connect_retries: 120
  routes: [
    {{- range $i := until (int $nats.replicas) }}
    nats-route://{{ include "starling.nats.name" $ }}-{{ $i }}.{{ include "starling.nats.headless" $ }}.{{ $.Release.Namespace }}.svc:6222
    {{- end }}
  ]
  {{- if $tls }}
  tls {
    cert_file: /etc/nats-tls/tls.crt
    key_file: /etc/nats-tls/tls.key
    ca_file: /etc/nats-tls/ca.crt
    verify: true
  }
  {{- end }}
}
{{- end }}
{{- if $nats.auth.existingSecret }}

# Accounts, users and their rights, from `mesh auth generate`.
include "accounts.conf"
{{- end }}
{{- with $nats.extraConfig }}

{{ tpl . $ | trim }}
{{- end }}
{{ end -}}
