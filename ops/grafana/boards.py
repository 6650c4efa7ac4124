"""What the four dashboards show. A row is a question that an operator has.

`$capability` is what the reader chose; what may stand under no agent's name (unserved tasks) is never narrowed by it.
Gauges of the whole mesh are the same on every peer, so the largest one is taken.
"""

from typing import Final

from ops.grafana.panels import Board, Query, Row, graph, number, quantiles, states, table, words

LOST: Final = "Is anything lost or stuck?"
SLOW: Final = "Which agent is slow and why?"
PERSON: Final = "What is waiting for a person?"
DECIDED: Final = "What did agent X decide on task Y, why, and how sure was it?"
COST: Final = "What does a day cost?"
CALLED: Final = "Who must be called?"
QUESTIONS: Final = (LOST, SLOW, PERSON, DECIDED, COST, CALLED)
"""What an operator must be able to answer within a minute each."""

OURS: Final = '{capability=~"$capability"}'
EACH: Final = "{{capability}}"
TASKS_A_SECOND: Final = "suffix: /s"


def rate(metric: str, by: str, where: str = OURS) -> str:
    """How often a second, over all peers."""
    return f"sum by ({by}) (rate({metric}{where}[$__rate_interval]))"


def within(metric: str, by: str, where: str = OURS) -> str:
    """How often in the time shown, over all peers."""
    return f"sum by ({by}) (increase({metric}{where}[$__range]))"


def share(of: str, among: str) -> str:
    """What one counter is of another one, of each capability; left out where there is nothing to share."""
    return f"{rate(of, 'capability')} / ({rate(among, 'capability')} > 0)"


def mesh_wide(metric: str, by: str = "capability", where: str = OURS) -> str:
    """A gauge of the whole mesh, as some peer shows it."""
    return f"max by ({by}) ({metric}{where})"


FLEET: Final = Board(
    "starling-fleet",
    "Starling / Fleet",
    "Start here: is the mesh well, what waits for whom, and what does it cost?",
    (
        Row(
            LOST,
            (
                number(
                    "Served by nobody",
                    "How many tasks wait for a capability that no peer ever served? More than none is wrong.",
                    Query("sum(max by (capability) (mesh_unserved_tasks))", is_zero_at_rest=True),
                    alarm=1,
                ),
                number(
                    "Dead letters",
                    "How many failed tasks has nobody looked at? `mesh dead ls` lists them.",
                    Query(f"sum({mesh_wide('mesh_dead_letters_kept')})"),
                    alarm=1,
                ),
                number(
                    "Queued",
                    "How many tasks wait for a free slot?",
                    Query(f"sum({mesh_wide('mesh_queue_tasks', 'capability, lane')})"),
                ),
                number(
                    "In the hands of peers",
                    "How many tasks run, wait in memory or wait for their next attempt?",
                    Query(f"sum({mesh_wide('mesh_unacked_tasks', 'capability, lane')})"),
                ),
                number(
                    "Parked",
                    "How many tasks wait in the stream for a child, a time, a signal or a person?",
                    Query(f"sum({mesh_wide('mesh_parked_tasks')})"),
                ),
                number(
                    "Alerts",
                    "How many alerts fire?",
                    Query('count(ALERTS{alertstate="firing", alertname=~"Mesh.+"})', is_zero_at_rest=True),
                    alarm=1,
                ),
                table(
                    "Where work stands",
                    "Which capability holds it? Work in hand while nothing is answered is stuck.",
                    Query(f"sum by (capability) ({mesh_wide('mesh_queue_tasks', 'capability, lane')})", "queued"),
                    Query(f"sum by (capability) ({mesh_wide('mesh_unacked_tasks', 'capability, lane')})", "in hand"),
                    Query(mesh_wide("mesh_parked_tasks"), "parked"),
                    Query(mesh_wide("mesh_dead_letters_kept"), "dead letters"),
                    Query(within("mesh_tasks_total", "capability"), "answered in the time shown"),
                    columns=("capability",),
                ),
                graph(
                    "Answered",
                    "Does work get done? A capability whose line is at zero while tasks are queued is stuck.",
                    Query(rate("mesh_tasks_total", "capability"), EACH),
                    unit=TASKS_A_SECOND,
                    width=6,
                ),
                graph(
                    "Queued",
                    "Do queues grow?",
                    Query(f"sum by (capability) ({mesh_wide('mesh_queue_tasks', 'capability, lane')})", EACH),
                    width=6,
                ),
            ),
        ),
        Row(
            PERSON,
            (
                number(
                    "In the inbox",
                    "How many proposals have no answer yet? `mesh inbox ls` lists them.",
                    Query("max(mesh_inbox_waiting)"),
                ),
                number(
                    "The oldest waits for",
                    "How long has somebody been waited for?",
                    Query("max(mesh_inbox_oldest_seconds)"),
                    unit="s",
                    alarm=4 * 3600,
                ),
                graph(
                    "Inbox",
                    "Do people keep up?",
                    Query("max(mesh_inbox_waiting)", "proposals"),
                ),
                table(
                    "Dead letters to look at",
                    "Which failed tasks does somebody have to try again or drop?",
                    Query(f"{mesh_wide('mesh_dead_letters_kept')} > 0", "dead letters"),
                    columns=("capability",),
                    width=8,
                ),
            ),
        ),
        Row(
            COST,
            (
                number(
                    "The last 24 hours",
                    "What did agents report as spent, in US dollars?",
                    Query(f"sum(increase(mesh_cost_usd_total{OURS}[24h]))"),
                    unit="currencyUSD",
                ),
                number(
                    "At the pace of this hour",
                    "What would a day like the last hour cost?",
                    Query(f"24 * sum(increase(mesh_cost_usd_total{OURS}[1h]))"),
                    unit="currencyUSD",
                ),
                table(
                    "Of whom",
                    "Which team's agents spent it in the last 24 hours?",
                    Query(
                        f"sum by (owner, capability) (increase(mesh_cost_usd_total{OURS}[24h])"
                        " * on (capability) group_left (owner) mesh:capability_owner) > 0",
                        "US dollars",
                    ),
                    columns=("owner", "capability"),
                    unit="currencyUSD",
                    width=8,
                ),
                graph(
                    "By the hour",
                    "When was it spent?",
                    Query(f"sum by (capability) (increase(mesh_cost_usd_total{OURS}[1h]))", EACH),
                    unit="currencyUSD",
                    stacked=True,
                ),
            ),
        ),
        Row(
            CALLED,
            (
                table(
                    "Alerts that fire",
                    "Who is called now, and for what? The runbook of each is ops/runbooks/<alert>.md.",
                    Query(
                        "max by (severity, owner, alertname, capability)"
                        ' (ALERTS{alertstate="firing", alertname=~"Mesh.+"})'
                    ),
                    columns=("severity", "owner", "alertname", "capability"),
                ),
                table(
                    "Owners",
                    "Whose is it, and which versions run on how many peers? `mesh agents` says the same.",
                    Query(f"count by (capability, owner, agent, version) (mesh_agent_info{OURS})", "peers"),
                    columns=("capability", "owner", "agent", "version"),
                ),
            ),
        ),
        Row(
            "Are the peers well?",
            (
                graph(
                    "Peers",
                    "Are all there, and do they take work?",
                    Query("sum(mesh_ready)", "ready"),
                    Query("max(mesh_live_peers)", "heard by the others"),
                    Query('count(up{job="mesh"} == 1)', "scraped"),
                ),
                graph(
                    "Slots taken",
                    "Is there room for more work?",
                    Query(
                        f"sum by (capability) (mesh_in_flight_tasks{OURS}) / sum by (capability) (mesh_slots{OURS})",
                        EACH,
                    ),
                    unit="percentunit",
                ),
                graph(
                    "Event loop",
                    "Which peer is blocked by a handler?",
                    Query("mesh_loop_lag_seconds", "{{instance}}"),
                    unit="s",
                ),
                graph(
                    "Memory",
                    "Which peer grows?",
                    Query('mesh_memory_bytes{job="mesh"}', "{{instance}}"),
                    unit="bytes",
                ),
                graph(
                    "Connections",
                    "Is a peer cut off from NATS again and again?",
                    Query("sum by (instance) (increase(mesh_reconnections_total[$__rate_interval]))", "{{instance}}"),
                ),
                table(
                    "Versions of Starling",
                    "Is a rollout under way, or stuck?",
                    Query("count by (version, python) (mesh_build_info)", "peers"),
                    columns=("version", "python"),
                    width=8,
                ),
            ),
        ),
    ),
)

CAPABILITY: Final = Board(
    "starling-capability",
    "Starling / Capability",
    "One capability or some of them: how fast, how well, how sure, at what price.",
    (
        Row(
            SLOW,
            (
                graph(
                    "Time in the queue",
                    "Do tasks wait for a slot? Then it is not the agent that is slow: there are too few slots.",
                    *quantiles("mesh_task_queue_seconds", "capability", OURS),
                    unit="s",
                ),
                graph(
                    "Run time",
                    "Is the handler slow, or what it calls? Waits for children and people count.",
                    *quantiles("mesh_task_run_seconds", "capability", OURS),
                    unit="s",
                ),
                graph(
                    "Commit",
                    "Is storing the result slow? Then it is the server, its disk or a full stream.",
                    *quantiles("mesh_task_commit_seconds", "capability", OURS),
                    unit="s",
                ),
                graph(
                    "On which peer",
                    "How long does a task hold a slot on each peer? One line above the others is a slow peer.",
                    Query(f"mesh_service_seconds{OURS}", "{{capability}} {{instance}}"),
                    unit="s",
                ),
                graph(
                    "Tries again",
                    "Is it slow because attempts fail? Retries, and callees that say: not now.",
                    Query(rate("mesh_retries_total", "capability"), "{{capability}} failed"),
                    Query(rate("mesh_throttled_total", "capability"), "{{capability}} not now"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Coordination",
                    "What share of a task's time is the mesh's own work?",
                    Query(
                        "sum by (capability) (rate(mesh_work_seconds_total"
                        '{capability=~"$capability", spent="mesh"}[$__rate_interval]))'
                        f" / {rate('mesh_work_seconds_total', 'capability')}",
                        EACH,
                    ),
                    unit="percentunit",
                ),
            ),
        ),
        Row(
            "Is there room for more work?",
            (
                graph(
                    "Queue by lane",
                    "What waits, and how urgent is it?",
                    Query(mesh_wide("mesh_queue_tasks", "capability, lane"), "{{capability}} {{lane}}"),
                    stacked=True,
                ),
                graph(
                    "Queue against its bound",
                    "How near are submitters to being refused?",
                    Query(
                        f"{mesh_wide('mesh_queue_tasks', 'capability, lane')}"
                        f" / on (capability, lane) {mesh_wide('mesh_queue_max_tasks', 'capability, lane')}",
                        "{{capability}} {{lane}}",
                    ),
                    unit="percentunit",
                ),
                graph(
                    "Slots",
                    "How many are there, and how many are taken?",
                    Query(f"sum by (capability) (mesh_slots{OURS})", "{{capability}} slots"),
                    Query(f"sum by (capability) (mesh_in_flight_tasks{OURS})", "{{capability}} taken"),
                ),
                graph(
                    "Free slots, by why",
                    "Why does a free slot not take work: none there, paused, a breaker, not connected?",
                    Query(f"sum by (why) (mesh_idle_slots{OURS})", "{{why}}"),
                    stacked=True,
                ),
                graph(
                    "Bids",
                    "Which peer does not want more? 1 is best; others go first where it is above.",
                    Query(f"mesh_bid{OURS}", "{{capability}} {{instance}}"),
                ),
                graph(
                    "Offer to start",
                    "How long does a slot wait for work? Short means that more slots would be used.",
                    *quantiles("mesh_bid_to_start_seconds", "capability", OURS, shares=(0.5,)),
                    unit="s",
                ),
            ),
        ),
        Row(
            "What comes out?",
            (
                graph(
                    "Answers",
                    "How do tasks end?",
                    Query(rate("mesh_tasks_total", "capability, status"), "{{capability}} {{status}}"),
                    unit=TASKS_A_SECOND,
                    stacked=True,
                ),
                graph(
                    "Share without a value",
                    "How many fail or come too late?",
                    Query(
                        "sum by (capability) (rate(mesh_tasks_total"
                        '{capability=~"$capability", status=~"failed|expired"}[$__rate_interval]))'
                        f" / ({rate('mesh_tasks_total', 'capability')} > 0)",
                        EACH,
                    ),
                    unit="percentunit",
                ),
                graph(
                    "By version",
                    "Which version answers, and does the new one fail more?",
                    Query(
                        rate("mesh_tasks_total", "capability, version, status"), "{{capability}} {{version}} {{status}}"
                    ),
                    unit=TASKS_A_SECOND,
                ),
            ),
        ),
        Row(
            DECIDED,
            (
                words(
                    "One task",
                    "Where does the answer for one task stand?",
                    "Metrics know no ids. For one task ask its record:\n\n"
                    "```\nmesh trace CAPABILITY/ID          # what, why, how sure, with which model and prompt\n"
                    "mesh decisions CAPABILITY         # the decisions of the last hour\n"
                    "mesh events --id ID               # all that happened to it, while it is kept\n```\n\n"
                    "Beside it: what the agent chooses as a rule.",
                ),
                graph(
                    "Decisions",
                    "What does it choose, and does that change?",
                    Query(rate("mesh_decisions_total", "capability, choice"), "{{capability}} {{choice}}"),
                    unit=TASKS_A_SECOND,
                    stacked=True,
                ),
                graph(
                    "How sure of its decisions",
                    "How sure is it of what it chooses? The least sure tenth, and the middle.",
                    *quantiles("mesh_decision_confidence", "capability", OURS, shares=(0.1, 0.5)),
                    unit="percentunit",
                ),
                graph(
                    "How sure of its answers",
                    "Does it become less sure? The mean, and the least sure tenth.",
                    Query(
                        share("mesh_confidence_sum", "mesh_confidence_count"),
                        "{{capability}} mean",
                    ),
                    *quantiles("mesh_confidence", "capability", OURS, shares=(0.1,)),
                    unit="percentunit",
                ),
                graph(
                    "Passed up the ladder",
                    "What share of its tasks is it not sure enough for?",
                    Query(
                        share("mesh_escalations_total", "mesh_tasks_total"),
                        EACH,
                    ),
                    unit="percentunit",
                ),
                table(
                    "Models and prompts in use",
                    "With what did it answer in the last hour? Two digests of a kind under one version: a change.",
                    Query(f"max by (capability, version, what, digest) (mesh_digest_info{OURS})"),
                    columns=("capability", "version", "what", "digest"),
                    width=8,
                ),
            ),
        ),
        Row(
            "What does it use up?",
            (
                graph(
                    "US dollars by the hour",
                    "What does it cost?",
                    Query(f"sum by (capability) (increase(mesh_cost_usd_total{OURS}[1h]))", EACH),
                    unit="currencyUSD",
                ),
                graph(
                    "US dollars for a task",
                    "Does a task become dearer?",
                    Query(
                        share("mesh_cost_usd_total", "mesh_tasks_total"),
                        EACH,
                    ),
                    unit="currencyUSD",
                ),
                graph(
                    "Tokens",
                    "How many do models read and write?",
                    Query(rate("mesh_tokens_total", "capability, direction"), "{{capability}} {{direction}}"),
                    unit="suffix: tokens/s",
                ),
            ),
        ),
    ),
)

WORKFLOW: Final = Board(
    "starling-workflow",
    "Starling / Workflow",
    "Tasks that ask for tasks: who calls whom, what waits, and what goes on.",
    (
        Row(
            "Who calls whom?",
            (
                table(
                    "Calls",
                    "Which capability asks which, how often in the time shown? One that asks itself may be a loop.",
                    Query(f"{within('mesh_calls_total', 'caller, capability')} > 0", "tasks"),
                    columns=("caller", "capability"),
                ),
                graph(
                    "Calls over time",
                    "Whose work became more?",
                    Query(rate("mesh_calls_total", "caller, capability"), "{{caller}} → {{capability}}"),
                    unit=TASKS_A_SECOND,
                    width=12,
                ),
            ),
        ),
        Row(
            "What waits, and does it go on?",
            (
                graph(
                    "Parked tasks",
                    "How many wait in the stream, of which capability?",
                    Query(mesh_wide("mesh_parked_tasks"), EACH),
                    stacked=True,
                ),
                graph(
                    "Parks and wakes",
                    "Do as many go on as begin to wait?",
                    Query(rate("mesh_parks_total", "capability"), "{{capability}} parked"),
                    Query(rate("mesh_wakes_total", "capability"), "{{capability}} woken"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Waiting in memory",
                    "Which peer keeps how many waiting tasks?",
                    Query("mesh_waiting_tasks", "{{instance}}"),
                ),
                graph(
                    "Waiting for people",
                    "How many proposals have no answer?",
                    Query("max(mesh_inbox_waiting)", "proposals"),
                ),
                graph(
                    "The oldest proposal",
                    "How long do people let workflows wait?",
                    Query("max(mesh_inbox_oldest_seconds)", "oldest"),
                    unit="s",
                ),
                graph(
                    "Deadlines missed",
                    "Which answers came too late?",
                    Query(rate("mesh_deadline_misses_total", "capability"), EACH),
                    unit=TASKS_A_SECOND,
                ),
            ),
        ),
        Row(
            "Where does work go on the way?",
            (
                graph(
                    "Steps",
                    "How much is done, and how much was found on record and not done again?",
                    Query(rate("mesh_steps_total", "capability, how"), "{{capability}} {{how}}"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Handed to others",
                    "Whose answer becomes whose?",
                    Query(rate("mesh_handoffs_total", "capability"), EACH),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Escalations",
                    "Which rung is not sure enough?",
                    Query(rate("mesh_escalations_total", "capability"), EACH),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Events",
                    "What happens in the mesh? `mesh events` tells of what.",
                    Query(rate("mesh_events_total", "kind", ""), "{{kind}}"),
                    unit=TASKS_A_SECOND,
                    width=24,
                ),
            ),
        ),
    ),
)

RELIABILITY: Final = Board(
    "starling-reliability",
    "Starling / Reliability",
    "What went wrong, what was done about it, and whether there is room.",
    (
        Row(
            "What was given up?",
            (
                graph(
                    "Dead letters, by why",
                    "Why do tasks fail for good?",
                    Query(rate("mesh_dead_letters_total", "capability, reason"), "{{capability}} {{reason}}"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Dead letters kept",
                    "How many wait for somebody?",
                    Query(mesh_wide("mesh_dead_letters_kept"), EACH),
                ),
                graph(
                    "Served by nobody",
                    "What is asked for that nobody does?",
                    Query("max by (capability) (mesh_unserved_tasks)", EACH),
                ),
            ),
        ),
        Row(
            "What was done again?",
            (
                graph(
                    "Redeliveries",
                    "Do peers die or stall with work in hand?",
                    Query(rate("mesh_redeliveries_total", "capability"), EACH),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Retries",
                    "How often does something fail that another attempt may mend?",
                    Query(rate("mesh_retries_total", "capability"), "{{capability}} tried again"),
                    Query(rate("mesh_retries_delayed_total", "capability"), "{{capability}} put off"),
                    Query(rate("mesh_throttled_total", "capability"), "{{capability}} not now"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Handed back, by why",
                    "Why does work go back to its queue?",
                    Query(rate("mesh_handed_back_total", "capability, reason"), "{{capability}} {{reason}}"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Duplicates, by where they died",
                    "How much is asked, run or answered twice? At commit means two owners.",
                    Query(rate("mesh_duplicates_total", "capability, at"), "{{capability}} {{at}}"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Set going again",
                    "Did the server forget to hand something out?",
                    Query(rate("mesh_revived_total", "capability"), EACH),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Starts of peers",
                    "Do peers crash?",
                    Query('sum(changes(mesh_start_time_seconds{job="mesh"}[$__range]))', "restarts in the time shown"),
                    Query('count(time() - mesh_start_time_seconds{job="mesh"} < 900)', "up for less than 15 minutes"),
                ),
            ),
        ),
        Row(
            "Which callee is down?",
            (
                states(
                    "Breakers",
                    "Which dependency is kept off, since when?",
                    Query(
                        'max by (breaker) (2 * mesh_breaker_state{state="open"}) > 0'
                        ' or max by (breaker) (mesh_breaker_state{state="half-open"})',
                        "{{breaker}}",
                    ),
                ),
                graph(
                    "Calls",
                    "How well is a callee?",
                    Query(rate("mesh_breaker_calls_total", "breaker, how", ""), "{{breaker}} {{how}}"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Held back, and changes",
                    "How much waits for a callee, and does it come and go?",
                    Query(rate("mesh_breaker_refused_total", "breaker", ""), "{{breaker}} held back"),
                    Query(rate("mesh_breaker_transitions_total", "breaker, to", ""), "{{breaker}} to {{to}}"),
                    unit=TASKS_A_SECOND,
                ),
            ),
        ),
        Row(
            "Does a limit hold work back?",
            (
                graph(
                    "Waiting for a turn",
                    "How long does a call wait at a shared limit?",
                    *quantiles("mesh_limit_wait_seconds", "resource", ""),
                    unit="s",
                ),
                graph(
                    "Turns",
                    "How much of the resource is used?",
                    Query(rate("mesh_limit_granted_total", "resource", ""), "{{resource}}"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Refused",
                    "How much does not fit into the limit?",
                    Query(rate("mesh_limit_refused_total", "resource", ""), "{{resource}}"),
                    unit=TASKS_A_SECOND,
                ),
            ),
        ),
        Row(
            "Is there room in the streams?",
            (
                graph(
                    "Bytes against the limit",
                    "Which stream fills up? Clients stop at 90 %; that of events is full by design.",
                    Query("max by (stream) (mesh_stream_bytes / mesh_stream_bytes_max)", "{{stream}}"),
                    unit="percentunit",
                ),
                graph(
                    "Messages against the limit",
                    "Which stream fills up by number, where one is set?",
                    Query("max by (stream) (mesh_stream_messages / mesh_stream_messages_max)", "{{stream}}"),
                    unit="percentunit",
                ),
                graph(
                    "Bytes",
                    "What grows, and how fast?",
                    Query("max by (stream) (mesh_stream_bytes)", "{{stream}}"),
                    unit="bytes",
                ),
            ),
        ),
        Row(
            "Can these figures be relied on?",
            (
                graph(
                    "Age of the survey",
                    "How old is what peers show of queues, parks and streams?",
                    Query("mesh_survey_age_seconds", "{{instance}}"),
                    unit="s",
                ),
                graph(
                    "Reconnections",
                    "Is the connection to NATS sound?",
                    Query("sum by (instance) (rate(mesh_reconnections_total[$__rate_interval]))", "{{instance}}"),
                    unit=TASKS_A_SECOND,
                ),
                graph(
                    "Events lost",
                    "Is the log of events whole?",
                    Query("sum by (instance) (rate(mesh_events_lost_total[$__rate_interval]))", "{{instance}}"),
                    unit=TASKS_A_SECOND,
                ),
            ),
        ),
    ),
)

BOARDS: Final = (FLEET, CAPABILITY, WORKFLOW, RELIABILITY)
