{{/* What the schema cannot refuse, or not in plain words. Each message names the key and says what to write. */}}

{{- define "starling.checks" -}}
{{- include "starling.checks.nats" . -}}
{{- include "starling.checks.mesh" . -}}
{{- include "starling.checks.forms" (dict "at" "" "checks" (list
  (list "image.digest" .Values.image.digest "^sha256:[0-9a-f]{64}$" "sha256: and 64 hexadecimal digits")
  (list "nats.bundled.image.digest" .Values.nats.bundled.image.digest "^sha256:[0-9a-f]{64}$" "sha256: and 64 hexadecimal digits")
  (list "nats.bundled.exporter.image.digest" .Values.nats.bundled.exporter.image.digest "^sha256:[0-9a-f]{64}$" "sha256: and 64 hexadecimal digits")
  (list "nats.bundled.jetstream.maxFile" .Values.nats.bundled.jetstream.maxFile "^[0-9]+(K|M|G|T)(i?B)?$" "a number and a unit, as 18GiB")
  (list "nats.bundled.jetstream.maxMemory" .Values.nats.bundled.jetstream.maxMemory "^[0-9]+(K|M|G|T)(i?B)?$" "a number and a unit, as 64MiB")
  (list "nats.bundled.jetstream.syncInterval" .Values.nats.bundled.jetstream.syncInterval "^(always|[0-9]+(ms|s|m))$" "always, or a length, as 1s")
  (list "nats.bundled.persistence.size" .Values.nats.bundled.persistence.size "^[0-9]+(Ki|Mi|Gi|Ti|K|M|G|T)$" "a number and a unit, as 20Gi")
  (list "nats.external.monitoring.endpoint" .Values.nats.external.monitoring.endpoint "^[^/@]+:[0-9]+$" "a host and a port alone, as nats-headless.nats.svc.cluster.local:8222")
  (list "nats.auth.operator.user" .Values.nats.auth.operator.user "^[A-Za-z0-9_-]+$" "letters, digits, - and _")
  (list "nats.auth.probe.user" .Values.nats.auth.probe.user "^[A-Za-z0-9_-]+$" "letters, digits, - and _")
  (list "serviceMonitor.interval" .Values.serviceMonitor.interval "^[0-9]+(ms|s|m|h)$" "a length, as 15s")
  (list "serviceMonitor.scrapeTimeout" .Values.serviceMonitor.scrapeTimeout "^[0-9]+(ms|s|m|h)$" "a length, as 10s")
)) -}}
{{- include "starling.checks.store" . -}}
{{- if gt (len (include "starling.fullname" .)) 44 -}}
{{- fail (printf "%s has %d characters, and 44 leave room for what comes behind it in the names of objects: choose a shorter name for the release, or set fullnameOverride" (include "starling.fullname" .) (len (include "starling.fullname" .))) -}}
{{- end -}}
{{- include "starling.checks.env" (dict "at" "jobs" "env" .Values.jobs.env) -}}
{{- range $key, $image := dict "image" .Values.image "nats.bundled.image" .Values.nats.bundled.image "nats.bundled.exporter.image" .Values.nats.bundled.exporter.image -}}
{{- if eq (toString $image.tag) "latest" -}}
{{- fail (printf "%s.tag is latest, which means another image tomorrow: write a version, or %s.digest" $key $key) -}}
{{- end -}}
{{- end -}}
{{- range $name, $said := .Values.agents -}}
{{- include "starling.checks.agent" (dict "root" $ "name" $name "agent" (include "starling.agent" (dict "root" $ "agent" $name) | fromYaml)) -}}
{{- end -}}
{{- end -}}

{{/* Text that has a form. An empty one says nothing and is fine. */}}
{{- define "starling.checks.forms" -}}
{{- $at := .at -}}
{{- range .checks -}}
{{- if and (index . 1) (not (regexMatch (index . 2) (toString (index . 1)))) -}}
{{- fail (printf "%s%s: %q is not %s" $at (index . 0) (toString (index . 1)) (index . 3)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "starling.checks.env" -}}
{{- $at := .at -}}
{{- range .env -}}
{{- if and (hasKey . "value") (regexMatch "(PASSWORD|TOKEN|SECRET|API_KEY|PRIVATE_KEY|CREDENTIALS)$" .name) -}}
{{- fail (printf "%s: env %s looks like a secret and stands in the values: put it into a Secret and %suse valueFrom" $at .name (ternary "" "name that in extraSecrets, or " (eq $at "jobs"))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "starling.checks.nats" -}}
{{- $external := .Values.nats.external -}}
{{- $bundled := .Values.nats.bundled -}}
{{- if and $external.url $bundled.enabled -}}
{{- fail "nats.external.url and nats.bundled.enabled are both set: keep the address of the NATS you have, or let the chart bring its own, not both" -}}
{{- end -}}
{{- if not (or $external.url $bundled.enabled) -}}
{{- fail "nobody said where NATS is: set nats.external.url to the address of the NATS you have, as nats://nats.example:4222, or nats.bundled.enabled to true" -}}
{{- end -}}
{{- range splitList "," $external.url -}}
{{- if contains "@" . -}}
{{- fail "nats.external.url holds a user's name or password: write the address alone, and put the credentials into a Secret that nats.auth names" -}}
{{- end -}}
{{- if and . (not (regexMatch "^(nats|tls|ws|wss)://[^/:@]+(:[0-9]+)?$|^(nats|tls|ws|wss)://\\[[0-9a-fA-F:]+\\](:[0-9]+)?$" (trim .))) -}}
{{- fail (printf "nats.external.url: %q is no address: write nats://HOST:PORT, several with commas between" .) -}}
{{- end -}}
{{- end -}}
{{- if $bundled.enabled -}}
{{- if and $bundled.auth.insecure $bundled.auth.existingSecret -}}
{{- fail "nats.bundled.auth.insecure and nats.bundled.auth.existingSecret are both set: with the Secret every user has to prove who it is, so leave insecure at false" -}}
{{- end -}}
{{- if not (or $bundled.auth.insecure $bundled.auth.existingSecret) -}}
{{- fail (printf "the bundled NATS has no users: run `mesh auth generate ACCESS.yaml --out DIR --release %s`, apply DIR/kubernetes.yaml and set nats.bundled.auth.existingSecret to %s-nats-accounts; to let everybody in who reaches the port, set nats.bundled.auth.insecure to true" .Release.Name .Release.Name) -}}
{{- end -}}
{{- if and $bundled.auth.existingSecret (ne .Values.nats.auth.type "nkey") -}}
{{- fail (printf "nats.auth.type is %s, but the users of the bundled NATS have NKEYs: set it to nkey" .Values.nats.auth.type) -}}
{{- end -}}
{{- if not (has (int $bundled.replicas) (list 1 3 5)) -}}
{{- fail (printf "nats.bundled.replicas is %d: write 1, 3 or 5, since an even number of servers outlives no more failures than one less" (int $bundled.replicas)) -}}
{{- end -}}
{{- if gt (int (include "starling.replicas" .)) (int $bundled.replicas) -}}
{{- fail (printf "mesh.replicas is %s, and the bundled NATS has %d: a stream cannot have more copies than there are servers" (include "starling.replicas" .) (int $bundled.replicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The server promises each stream its limit and refuses the stream that no longer fits. */}}
{{- define "starling.checks.store" -}}
{{- $bundled := .Values.nats.bundled -}}
{{- if $bundled.enabled -}}
{{- $settings := .Values.mesh.settings -}}
{{- $needed := add (get $settings "MESH_STREAM_BYTES_MAX" | default 4294967296 | int64) (get $settings "MESH_OBJECTS_BYTES_MAX" | default 2147483648 | int64) (get $settings "MESH_EVENTS_BYTES_MAX" | default 268435456 | int64) 67108864 -}}
{{- $most := include "starling.bytes" $bundled.jetstream.maxFile | int64 -}}
{{- if lt $most $needed -}}
{{- fail (printf "nats.bundled.jetstream.maxFile is %s, and the streams of the mesh are promised %d MiB: raise it, or lower MESH_STREAM_BYTES_MAX, MESH_OBJECTS_BYTES_MAX or MESH_EVENTS_BYTES_MAX in mesh.settings" $bundled.jetstream.maxFile (div (add $needed 1048575) 1048576)) -}}
{{- end -}}
{{- if ge $most (include "starling.bytes" $bundled.persistence.size | int64) -}}
{{- fail (printf "nats.bundled.jetstream.maxFile is %s, and the volume has %s: leave a tenth of it to what the server keeps beside the messages" $bundled.jetstream.maxFile $bundled.persistence.size) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Bytes of 20Gi, 18GiB or 5G; one letter alone counts in thousands, for Kubernetes and for the server. */}}
{{- define "starling.bytes" -}}
{{- $unit := regexFind "[A-Z].*$" . -}}
{{- $step := ternary 1000 1024 (eq (len $unit) 1) -}}
{{- $bytes := regexFind "^[0-9]+" . | int64 -}}
{{- range until (index (dict "K" 1 "M" 2 "G" 3 "T" 4) (substr 0 1 $unit)) -}}{{- $bytes = mul $bytes $step -}}{{- end -}}
{{- $bytes -}}
{{- end -}}

{{- define "starling.checks.mesh" -}}
{{- if not (regexMatch "^[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)*$" .Values.mesh.prefix) -}}
{{- fail (printf "mesh.prefix: %q cannot begin subjects: write letters, digits, - and _, parts with dots between" .Values.mesh.prefix) -}}
{{- end -}}
{{- $own := dict "MESH_NATS_URL" "nats.external.url" "MESH_PREFIX" "mesh.prefix" "MESH_REPLICAS" "mesh.replicas" "MESH_GRACE_S" "graceS" "MESH_LOG_LEVEL" "mesh.logLevel" "MESH_LOG_FORMAT" "mesh.logFormat" "MESH_HTTP_HOST" "mesh.httpHost" "MESH_NATS_TLS_CA" "nats.external.tls.ca" "MESH_NATS_TLS_CERT" "nats.external.tls.client" "MESH_NATS_TLS_KEY" "nats.external.tls.client" "MESH_NATS_NKEY_SEED" "nats.auth" "MESH_NATS_CREDS" "nats.auth" "MESH_NATS_INBOX_PREFIX" "nats.auth" "MESH_LLM_BASE_URL" "llm.baseUrl" "MESH_LLM_MODEL" "llm.model" "MESH_LLM_TIMEOUT_S" "llm.timeoutS" -}}
{{- range $name, $value := .Values.mesh.settings -}}
{{- if not (regexMatch "^MESH_[A-Z0-9_]+$" $name) -}}
{{- fail (printf "mesh.settings.%s is no setting: their names begin with MESH_ and are in capitals; other variables belong under env" $name) -}}
{{- end -}}
{{- if has $name (list "MESH_NATS_PASSWORD" "MESH_NATS_TOKEN" "MESH_NATS_USER" "MESH_LLM_API_KEY") -}}
{{- fail (printf "mesh.settings.%s would stand in a ConfigMap for everybody to read: put it into a Secret and name that in %s" $name (ternary "llm.existingSecret" "nats.auth" (eq $name "MESH_LLM_API_KEY"))) -}}
{{- end -}}
{{- if hasKey $own $name -}}
{{- fail (printf "mesh.settings.%s: the chart sets it from %s, write it there" $name (get $own $name)) -}}
{{- end -}}
{{- if eq $name "MESH_HTTP_PORT" -}}
{{- fail "mesh.settings.MESH_HTTP_PORT: probes, Services and policies expect 9464; a pod has its own address, so nothing else needs that port" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.test.enabled .Values.test.capability (not (regexMatch "^[A-Za-z0-9][A-Za-z0-9_-]*$" .Values.test.capability)) -}}
{{- fail (printf "test.capability: %q cannot name a capability" .Values.test.capability) -}}
{{- end -}}
{{- end -}}

{{- define "starling.checks.agent" -}}
{{- $at := printf "agents.%s" .name -}}
{{- $agent := .agent -}}
{{- $scaling := $agent.autoscaling -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" .name) -}}
{{- fail (printf "%s: the name becomes part of Kubernetes names: begin with a small letter, go on with small letters, digits and -" $at) -}}
{{- end -}}
{{- if has .name (list "nats" "nats-headless") -}}
{{- fail (printf "%s: the chart has an object of that name itself, call the agent otherwise" $at) -}}
{{- end -}}
{{- $full := include "starling.agentName" (dict "root" .root "agent" .name) -}}
{{- if gt (len $full) 46 -}}
{{- fail (printf "%s: %s has %d characters, and 46 leave room for what Kubernetes puts behind the names of pods: choose a shorter name for the agent, or set fullnameOverride" $at $full (len $full)) -}}
{{- end -}}
{{- if not $agent.targets -}}
{{- fail (printf "%s.targets is empty: write the modules or files that `mesh run` loads, as [\"my_agents.triage\"]" $at) -}}
{{- end -}}
{{- include "starling.checks.forms" (dict "at" (printf "%s: " $at) "checks" (list
  (list "image.digest" $agent.image.digest "^sha256:[0-9a-f]{64}$" "sha256: and 64 hexadecimal digits")
  (list "nats.user" (get ($agent.nats | default dict) "user") "^[A-Za-z0-9_-]+$" "letters, digits, - and _")
  (list "llm.baseUrl" $agent.llm.baseUrl "^https?://[^@]+$" "an address, as http://ollama.models.svc:11434/v1, without a user's name")
  (list "autoscaling.keda.prometheus.serverAddress" $agent.autoscaling.keda.prometheus.serverAddress "^https?://[^@]+$" "an address, as http://prometheus-operated.monitoring.svc:9090, without a user's name")
  (list "podDisruptionBudget.minAvailable" $agent.podDisruptionBudget.minAvailable "^[0-9]+%?$" "a number or a percentage, as 50%")
  (list "podDisruptionBudget.maxUnavailable" $agent.podDisruptionBudget.maxUnavailable "^[0-9]+%?$" "a number or a percentage, as 50%")
)) -}}
{{- if and .root.Values.topology.enabled (not $agent.capabilities) (include "starling.isApart" .) -}}
{{- fail (printf "%s.capabilities is empty: its targets are not in the shared image, so `mesh topology apply` cannot read there what they handle; write the names" $at) -}}
{{- end -}}
{{- range $agent.capabilities -}}
{{- if not (regexMatch "^[A-Za-z0-9][A-Za-z0-9_-]*$" .) -}}
{{- fail (printf "%s.capabilities: %q cannot name a capability: letters, digits, - and _" $at .) -}}
{{- end -}}
{{- end -}}
{{- if eq (toString $agent.image.tag) "latest" -}}
{{- fail (printf "%s: image.tag is latest, which means another image tomorrow: write a version, or image.digest" $at) -}}
{{- end -}}
{{- $needed := add (ceil $agent.graceS | int) 15 -}}
{{- if lt (int (include "starling.terminationGracePeriodSeconds" $agent)) (int $needed) -}}
{{- fail (printf "%s: terminationGracePeriodSeconds is %d, and a peer with graceS %v needs %d to drain: raise it, leave it out, or lower graceS" $at (int $agent.terminationGracePeriodSeconds) $agent.graceS $needed) -}}
{{- end -}}
{{- include "starling.checks.env" (dict "at" $at "env" $agent.env) -}}
{{- $budget := $agent.podDisruptionBudget -}}
{{- if and $budget.enabled (not (kindIs "invalid" $budget.minAvailable)) (not (kindIs "invalid" $budget.maxUnavailable)) -}}
{{- fail (printf "%s: podDisruptionBudget has both minAvailable and maxUnavailable: set one to null" $at) -}}
{{- end -}}
{{- $least := ternary $agent.replicas (max 1 (int $scaling.minReplicas)) (eq $scaling.mode "none") | int -}}
{{- if and $budget.enabled (not (kindIs "invalid" $budget.minAvailable)) (not (hasSuffix "%" (toString $budget.minAvailable))) (gt $least 0) (ge (int $budget.minAvailable) $least) -}}
{{- fail (printf "%s: podDisruptionBudget.minAvailable is %d of %d peers, so no node that has one could ever be drained: lower it, or set maxUnavailable" $at (int $budget.minAvailable) $least) -}}
{{- end -}}
{{- if ne $scaling.mode "none" -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "%s: autoscaling.minReplicas %d is above maxReplicas %d" $at (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $scaling.mode "hpa") (lt (int $scaling.minReplicas) 1) -}}
{{- fail (printf "%s: autoscaling.minReplicas is 0, which a HorizontalPodAutoscaler cannot do: write 1, or autoscaling.mode keda" $at) -}}
{{- end -}}
{{- if and (eq $scaling.mode "hpa") (not (or $scaling.hpa.targetCPUUtilizationPercentage $scaling.hpa.targetMemoryUtilizationPercentage $scaling.hpa.metrics)) -}}
{{- fail (printf "%s: autoscaling.hpa has nothing to go by: set targetCPUUtilizationPercentage, targetMemoryUtilizationPercentage or metrics" $at) -}}
{{- end -}}
{{- if eq $scaling.mode "keda" -}}
{{- if not $agent.capabilities -}}
{{- fail (printf "%s.capabilities is empty, and KEDA scales by their queues: write the names that the agent handles" $at) -}}
{{- end -}}
{{- if not (include "starling.nats.monitoring" .root) -}}
{{- fail (printf "%s: autoscaling.mode is keda, and KEDA reads queues from NATS's monitoring page: set nats.external.monitoring.endpoint, as nats-headless.nats.svc.cluster.local:8222" $at) -}}
{{- end -}}
{{- if ge (int $scaling.keda.activationLagThreshold) (int $scaling.keda.lagThreshold) -}}
{{- fail (printf "%s: autoscaling.keda.activationLagThreshold %d is not below lagThreshold %d: a single peer with its share of work would count as idle and be stopped" $at (int $scaling.keda.activationLagThreshold) (int $scaling.keda.lagThreshold)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
