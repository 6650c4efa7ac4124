"""Every metric of a peer, as data. What is not here is not exported, and `docs/metrics.md` is made from it.

Labels are capabilities, versions and words of sets that are closed or bounded; never an id.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from contracts.event import CLIENT, EventKind
from contracts.outcome import FailureKind, Status

OTHERS: Final = "(others)"
"""Stands for all values of a label that come after as many as have a series of their own."""
NO_LIMIT: Final = "(none)"
"""The resource of turns where no limit stands."""

CALLERS_MAX: Final = 100
CHOICES_MAX: Final = 20
CHOICE_LENGTH_MAX: Final = 64
DIGESTS_MAX: Final = 5
DIGEST_LENGTH_MAX: Final = 80
DIGESTS_KEPT_S: Final = 3_600.0
NAMES_MAX: Final = 100
"""Breakers, and resources with a limit."""
UNSERVED_MAX: Final = 50

QUEUE_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
RUN_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
COMMIT_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
CONFIDENCE_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

MetricType = Literal["counter", "gauge", "histogram"]
Values = Mapping[str, tuple[str, ...]]


class Group(StrEnum):
    """Where a metric belongs; the order is the order of the page."""

    TASKS = "What tasks came to"
    TIME = "How long it took"
    AGAIN = "What was done again"
    WAITS = "Workflows"
    DECISIONS = "Decisions and cost"
    CALLEES = "Breakers and limits"
    SLOTS = "Slots and bids"
    PEER = "The peer"
    MESH = "The mesh"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name` is as scraped, with a counter's `_total`; `values` are those of labels with a closed set."""

    name: str
    type: MetricType
    group: Group
    meaning: str
    question: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    values: Values = field(default_factory=lambda: MappingProxyType({}))


LABELS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "agent": "The agent that serves the capability.",
        "at": "Where a duplicate died.",
        "breaker": f"Its name. The first {NAMES_MAX} that a peer uses, then `{OTHERS}`.",
        "caller": f"The capability whose task asked, `{CLIENT}` where none did."
        f" The first {CALLERS_MAX} pairs of caller and capability that a peer sees, then `{OTHERS}`.",
        "capability": "What the task asks for. Those that the peer serves;"
        f" of tasks that nobody serves {UNSERVED_MAX} more, with their lane as `name@lane`, then `{OTHERS}`.",
        "choice": f"What the agent chose, at most {CHOICE_LENGTH_MAX} characters of it."
        f" The first {CHOICES_MAX} of a capability that a peer sees, then `{OTHERS}`.",
        "digest": "As the agent gave it. Those last used within an hour,"
        f" at most {DIGESTS_MAX}, and at most {DIGEST_LENGTH_MAX} characters of each.",
        "direction": "Read by models, or written by them.",
        "how": "What it came to.",
        "kind": "What happened.",
        "lane": "The queue within the capability.",
        "owner": "The team, as `Agent(owner=...)` names it.",
        "python": "The interpreter's version.",
        "reason": "Why.",
        "resource": f"Its name, `{NO_LIMIT}` for all that have no limit."
        f" The first {NAMES_MAX} that a peer uses, then `{OTHERS}`.",
        "spent": "On what the time went.",
        "state": "Of a circuit breaker.",
        "status": "How the task ended.",
        "stream": "The stream's name.",
        "to": "The state that it changed to.",
        "version": "The agent's version; of `mesh_build_info` that of Starling.",
        "what": "Of what it is the digest.",
        "why": "Why they are idle.",
    }
)

_CAPABILITY = ("capability",)
_LANES = ("normal", "urgent", "bulk")
_STATES = ("closed", "open", "half-open")
_LANE: Values = {"lane": _LANES}

# What tasks came to.

TASKS = Metric(
    "mesh_tasks_total",
    "counter",
    Group.TASKS,
    "Tasks that this peer answered, by how they ended.",
    "How much is done, and how much of it fails?",
    ("capability", "version", "status"),
    values={"status": tuple(Status)},
)
CALLS = Metric(
    "mesh_calls_total",
    "counter",
    Group.TASKS,
    "Tasks that this peer answered, by whose task asked for them.",
    "Who calls whom?",
    ("caller", "capability"),
)
DEADLINE_MISSES = Metric(
    "mesh_deadline_misses_total",
    "counter",
    Group.TASKS,
    "Tasks answered `expired`: their deadline passed before they were done.",
    "Do answers come in time?",
    _CAPABILITY,
)
DEAD_LETTERS = Metric(
    "mesh_dead_letters_total",
    "counter",
    Group.TASKS,
    "Tasks that were given up and kept as dead letters.",
    "What has to be looked at by a person, and why?",
    ("capability", "reason"),
    values={"reason": tuple(FailureKind)},
)

# How long it took.

QUEUE_S = Metric(
    "mesh_task_queue_seconds",
    "histogram",
    Group.TIME,
    "From stored to started, of answered tasks.",
    "Do tasks wait for a free slot?",
    _CAPABILITY,
    QUEUE_BUCKETS,
)
RUN_S = Metric(
    "mesh_task_run_seconds",
    "histogram",
    Group.TIME,
    "From the start of the answering attempt to the end of its handler, waits included.",
    "Which agent is slow?",
    _CAPABILITY,
    RUN_BUCKETS,
)
COMMIT_S = Metric(
    "mesh_task_commit_seconds",
    "histogram",
    Group.TIME,
    "From the handler's end to the stored result.",
    "Is the stream slow, or full?",
    _CAPABILITY,
    COMMIT_BUCKETS,
)
BID_TO_START_S = Metric(
    "mesh_bid_to_start_seconds",
    "histogram",
    Group.TIME,
    "From a slot's offer to the task that took it, the oldest offer first.",
    "How long do slots wait for work?",
    _CAPABILITY,
    QUEUE_BUCKETS,
)
WORK_S = Metric(
    "mesh_work_seconds_total",
    "counter",
    Group.TIME,
    "Where the time of deliveries went, from holding a slot until settled (acked, or handed back). `handler`: the"
    " handler ran and held its slot, records of its own steps included. `mesh`: everything else, looking for records,"
    " decoding, commit, relay, wakes and ack. Time in which a verb waited without a slot, stood in line to have it"
    " again, or waited for its turn at a limit is neither. Elapsed time, not time of the processor.",
    "What does coordination cost? mesh / (mesh + handler).",
    ("capability", "spent"),
    values={"spent": ("handler", "mesh")},
)

# What was done again.

REDELIVERIES = Metric(
    "mesh_redeliveries_total",
    "counter",
    Group.AGAIN,
    "Deliveries of a message that had been delivered before.",
    "Do peers die or stall with work in hand?",
    _CAPABILITY,
)
RETRIES = Metric(
    "mesh_retries_total",
    "counter",
    Group.AGAIN,
    "Failed attempts that will be tried again.",
    "How often does something fail that another attempt may mend?",
    _CAPABILITY,
)
RETRIES_DELAYED = Metric(
    "mesh_retries_delayed_total",
    "counter",
    Group.AGAIN,
    "Retries put off because the peer had made its share of them.",
    "Does the retry budget hold an outage's load down?",
    _CAPABILITY,
)
THROTTLED = Metric(
    "mesh_throttled_total",
    "counter",
    Group.AGAIN,
    "Attempts that ended because a callee said: not now.",
    "Is a callee's quota too small?",
    _CAPABILITY,
)
HANDED_BACK = Metric(
    "mesh_handed_back_total",
    "counter",
    Group.AGAIN,
    "Deliveries given back to the stream unsettled; no attempt is counted for them.",
    "Why does work go back to its queue?",
    ("capability", "reason"),
    values={
        "reason": (
            "another peer began the same attempt",
            "breaker open",
            "bus away",
            "draining",
            "its retry is not due",
            "malformed record",
            "newer format",
            "overloaded",
            "overtaken by another run",
            "probe failed",
            "refused",
            "running",
            "woken without a park",
        )
    },
)
DUPLICATES = Metric(
    "mesh_duplicates_total",
    "counter",
    Group.AGAIN,
    "Duplicates: children that were submitted before, tasks found answered before their start, results refused"
    " because another stood.",
    "How much is asked, run or answered twice, and stopped where?",
    ("capability", "at"),
    values={"at": ("submit", "start", "commit")},
)
REVIVED = Metric(
    "mesh_revived_total",
    "counter",
    Group.AGAIN,
    "Messages that no consumer would hand out, set going again by the sweep.",
    "Did the server forget work?",
    _CAPABILITY,
)

# Workflows.

PARKS = Metric(
    "mesh_parks_total",
    "counter",
    Group.WAITS,
    "Waiting tasks given to the stream.",
    "How many waits outlast memory?",
    _CAPABILITY,
)
WAKES = Metric(
    "mesh_wakes_total",
    "counter",
    Group.WAITS,
    "Parked tasks taken up again, by this peer.",
    "Do parked tasks go on?",
    _CAPABILITY,
)
STEPS = Metric(
    "mesh_steps_total",
    "counter",
    Group.WAITS,
    "Durable steps and children: run now, or found on record.",
    "How much work do records save?",
    ("capability", "how"),
    values={"how": ("ran", "replayed")},
)
ESCALATIONS = Metric(
    "mesh_escalations_total",
    "counter",
    Group.WAITS,
    "Tasks passed to the next rung of their ladder.",
    "How often is an agent not sure enough?",
    _CAPABILITY,
)
HANDOFFS = Metric(
    "mesh_handoffs_total",
    "counter",
    Group.WAITS,
    "Tasks handed to another capability, whose answer becomes theirs.",
    "How much does an agent pass on?",
    _CAPABILITY,
)

# Decisions and cost.

CONFIDENCE = Metric(
    "mesh_confidence",
    "histogram",
    Group.DECISIONS,
    "How sure agents were of their answers, where they said so.",
    "Does an agent become less sure?",
    _CAPABILITY,
    CONFIDENCE_BUCKETS,
)
DECISIONS = Metric(
    "mesh_decisions_total",
    "counter",
    Group.DECISIONS,
    "Decisions that agents put on record, by what they chose.",
    "What do agents choose, and does that change?",
    ("capability", "choice"),
)
DECISION_CONFIDENCE = Metric(
    "mesh_decision_confidence",
    "histogram",
    Group.DECISIONS,
    "How sure agents were of their decisions, where they said so.",
    "How sure are choices?",
    _CAPABILITY,
    CONFIDENCE_BUCKETS,
)
TOKENS = Metric(
    "mesh_tokens_total",
    "counter",
    Group.DECISIONS,
    "Tokens of models, as answered tasks reported them with `ctx.spent`.",
    "Who uses up tokens?",
    ("capability", "direction"),
    values={"direction": ("in", "out")},
)
COST_USD = Metric(
    "mesh_cost_usd_total",
    "counter",
    Group.DECISIONS,
    "US dollars, as answered tasks reported them with `ctx.spent`.",
    "What does a day cost, and whose work is it?",
    _CAPABILITY,
)
DIGEST_INFO = Metric(
    "mesh_digest_info",
    "gauge",
    Group.DECISIONS,
    "1 for each digest of a model or a prompt that the agent's answers and decisions carried within the last hour, the"
    " last used first.",
    "Did a model or a prompt change under the same version?",
    ("capability", "version", "what", "digest"),
    values={"what": ("model", "prompt")},
)

# Breakers and limits.

BREAKER_STATE = Metric(
    "mesh_breaker_state",
    "gauge",
    Group.CALLEES,
    "1 for the state that a circuit breaker is in, 0 for the others.",
    "Which callee is down?",
    ("breaker", "state"),
    values={"state": _STATES},
)
BREAKER_CALLS = Metric(
    "mesh_breaker_calls_total",
    "counter",
    Group.CALLEES,
    "Calls through a circuit breaker, by what they came to.",
    "How well is a callee?",
    ("breaker", "how"),
    values={"how": ("ok", "failed", "slow")},
)
BREAKER_REFUSED = Metric(
    "mesh_breaker_refused_total",
    "counter",
    Group.CALLEES,
    "Calls that an open breaker held back.",
    "How much waits for a callee?",
    ("breaker",),
)
BREAKER_TRANSITIONS = Metric(
    "mesh_breaker_transitions_total",
    "counter",
    Group.CALLEES,
    "Changes of a breaker's state that this peer decided; the sum over all peers is how often it changed.",
    "Does a callee come and go?",
    ("breaker", "to"),
    values={"to": _STATES},
)
LIMIT_WAIT_S = Metric(
    "mesh_limit_wait_seconds",
    "histogram",
    Group.CALLEES,
    "How long a call waited for its turn at a resource with a limit.",
    "Is a shared limit the bottleneck?",
    ("resource",),
    QUEUE_BUCKETS,
)
LIMIT_GRANTED = Metric(
    "mesh_limit_granted_total",
    "counter",
    Group.CALLEES,
    "Calls that had their turn at a resource.",
    "How much of a resource is used?",
    ("resource",),
)
LIMIT_REFUSED = Metric(
    "mesh_limit_refused_total",
    "counter",
    Group.CALLEES,
    "Calls whose turn would have come too late.",
    "Is a limit too small for the load?",
    ("resource",),
)

# Slots and bids.

IN_FLIGHT = Metric(
    "mesh_in_flight_tasks",
    "gauge",
    Group.SLOTS,
    "Tasks that hold a slot of this peer, or stand in line for one.",
    "How busy is it?",
    _CAPABILITY,
)
SLOTS = Metric(
    "mesh_slots", "gauge", Group.SLOTS, "Tasks that this peer runs at once.", "How much can it do?", _CAPABILITY
)
OFFERED_SLOTS = Metric(
    "mesh_offered_slots",
    "gauge",
    Group.SLOTS,
    "Slots on offer to the server; a free one may be in several lanes.",
    "Does it take work?",
    ("capability", "lane"),
    values=_LANE,
)
IDLE_SLOTS = Metric(
    "mesh_idle_slots",
    "gauge",
    Group.SLOTS,
    "Free slots, by why they are.",
    "Why is it idle?",
    ("capability", "why"),
    values={
        "why": ("no work", "passed over", "not offered", "paused", "breaker open", "draining", "not connected"),
    },
)
BID = Metric(
    "mesh_bid",
    "gauge",
    Group.SLOTS,
    "Tasks that must wait before this peer takes one more; 1 is best.",
    "Why do others get the work?",
    _CAPABILITY,
)
SERVICE_S = Metric(
    "mesh_service_seconds",
    "gauge",
    Group.SLOTS,
    "Moving average of the time a task holds a slot.",
    "Which peer is slow?",
    _CAPABILITY,
)
QUEUE_DEPTH = Metric(
    "mesh_queue_depth_tasks",
    "gauge",
    Group.SLOTS,
    "Tasks that waited behind the last one delivered here.",
    "Is there a backlog?",
    _CAPABILITY,
)
OLDEST_TASK_S = Metric(
    "mesh_oldest_task_seconds",
    "gauge",
    Group.SLOTS,
    "Age, from stored, of the oldest task in the hands of this peer; 0 where it holds none. What waits in the queue is"
    " in nobody's hands.",
    "Does a task hang?",
    ("capability", "lane"),
    values=_LANE,
)
PAUSED = Metric(
    "mesh_paused",
    "gauge",
    Group.SLOTS,
    "1 while an operator has paused it.",
    "Did somebody stop it on purpose?",
    _CAPABILITY,
)

# The peer.

READY = Metric("mesh_ready", "gauge", Group.PEER, "1 while this peer takes work.", "Is it up?")
LIVE_PEERS = Metric("mesh_live_peers", "gauge", Group.PEER, "Peers that this one hears.", "Is anybody missing?")
WAITING = Metric(
    "mesh_waiting_tasks",
    "gauge",
    Group.PEER,
    "Waiting tasks that are kept in memory.",
    "Do waits fill the memory of a peer?",
)
LOOP_LAG_S = Metric(
    "mesh_loop_lag_seconds", "gauge", Group.PEER, "How late the event loop is.", "Does a handler block it?"
)
RECONNECTIONS = Metric(
    "mesh_reconnections_total",
    "counter",
    Group.PEER,
    "Reconnections to NATS since the start.",
    "Is the connection to the server sound?",
)
STARTED_AT = Metric(
    "mesh_start_time_seconds",
    "gauge",
    Group.PEER,
    "Unix time of the process's start. Left out where the system does not tell.",
    "Does it crash and start again?",
)
MEMORY_BYTES = Metric(
    "mesh_memory_bytes",
    "gauge",
    Group.PEER,
    "Memory that the process holds. Left out where the system does not tell.",
    "Does it grow?",
)
EVENTS = Metric(
    "mesh_events_total",
    "counter",
    Group.PEER,
    "Events that this peer published.",
    "What happens in the mesh?",
    ("kind",),
    values={"kind": tuple(EventKind)},
)
EVENTS_LOST = Metric(
    "mesh_events_lost_total",
    "counter",
    Group.PEER,
    "Events that could not be published.",
    "Can the event log be relied on?",
)
AGENT_INFO = Metric(
    "mesh_agent_info",
    "gauge",
    Group.PEER,
    "1 for each capability that this peer serves.",
    "Who owns it, and which versions run?",
    ("capability", "agent", "version", "owner"),
)
BUILD_INFO = Metric(
    "mesh_build_info", "gauge", Group.PEER, "1, with the versions of this peer.", "What runs?", ("version", "python")
)

# The mesh.

QUEUE_TASKS = Metric(
    "mesh_queue_tasks",
    "gauge",
    Group.MESH,
    "Tasks, and wakes of parked ones, that wait to be handed out.",
    "How long is the queue?",
    ("capability", "lane"),
    values=_LANE,
)
UNACKED_TASKS = Metric(
    "mesh_unacked_tasks",
    "gauge",
    Group.MESH,
    "Tasks that are handed out and not settled: they run, wait in memory, or wait for a retry.",
    "How much is under way?",
    ("capability", "lane"),
    values=_LANE,
)
QUEUE_MAX_TASKS = Metric(
    "mesh_queue_max_tasks",
    "gauge",
    Group.MESH,
    "Tasks that may wait before submissions are refused; left out where there is no bound.",
    "How near is overload?",
    ("capability", "lane"),
    values=_LANE,
)
PARKED_TASKS = Metric(
    "mesh_parked_tasks",
    "gauge",
    Group.MESH,
    "Tasks with a park record: they wait in the stream, or were woken and run.",
    "How many workflows wait?",
    _CAPABILITY,
)
UNSERVED_TASKS = Metric(
    "mesh_unserved_tasks",
    "gauge",
    Group.MESH,
    "Tasks queued for a capability that no consumer serves.",
    "Is something asked for that nobody does?",
    _CAPABILITY,
)
DEAD_LETTERS_KEPT = Metric(
    "mesh_dead_letters_kept",
    "gauge",
    Group.MESH,
    "Dead letters that stand: neither redriven nor dropped nor expired.",
    "What was given up and not seen to?",
    _CAPABILITY,
)
INBOX_WAITING = Metric(
    "mesh_inbox_waiting",
    "gauge",
    Group.MESH,
    "Proposals that have no answer yet. Shown by peers that host `human`.",
    "What waits for a person?",
)
INBOX_OLDEST_S = Metric(
    "mesh_inbox_oldest_seconds",
    "gauge",
    Group.MESH,
    "Age of the oldest of them, 0 where none waits. Shown by peers that host `human`.",
    "Do people keep up?",
)
STREAM_BYTES = Metric(
    "mesh_stream_bytes", "gauge", Group.MESH, "What a stream holds, in bytes.", "Does a stream fill up?", ("stream",)
)
STREAM_BYTES_MAX = Metric(
    "mesh_stream_bytes_max",
    "gauge",
    Group.MESH,
    "What it may hold; left out where there is no limit.",
    "How near is the limit?",
    ("stream",),
)
STREAM_MESSAGES = Metric(
    "mesh_stream_messages", "gauge", Group.MESH, "Messages that a stream holds.", "What grows?", ("stream",)
)
STREAM_MESSAGES_MAX = Metric(
    "mesh_stream_messages_max",
    "gauge",
    Group.MESH,
    "How many it may hold; left out where there is no limit.",
    "How near is the limit?",
    ("stream",),
)
SURVEY_AGE_S = Metric(
    "mesh_survey_age_seconds",
    "gauge",
    Group.MESH,
    "How long ago this peer looked at the mesh with success, or began to try.",
    "How old are the gauges of the mesh?",
)

CATALOGUE: Final = tuple(
    sorted(
        (one for one in tuple(globals().values()) if isinstance(one, Metric)), key=lambda m: list(Group).index(m.group)
    )
)
"""Every metric above, group by group."""
