"""The subject grammar, both ways, over names and ids that mean harm."""

import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from contracts import subjects as grammar
from contracts.errors import ContractError
from contracts.subjects import Address, Identity, Kind, Line, Subjects

SEPARATORS = " \t\r\n\x00\x07\x7f\x85\xa0\u2028\u2029.*>"

prefixes = st.from_regex(r"[A-Za-z0-9_-]{1,8}(\.[A-Za-z0-9_-]{1,8}){0,2}", fullmatch=True).map(Subjects)
capabilities = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
characters = st.characters(exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"], exclude_characters=SEPARATORS)
tokens = st.text(characters, min_size=1, max_size=20).filter(lambda token: not token.startswith("~"))
ids = st.lists(tokens, min_size=1, max_size=4).map(".~".join)
identities = st.builds(Identity, capabilities, ids)
lanes = st.sampled_from(("", *grammar.LANES))
anything = st.text(max_size=40) | st.text(st.sampled_from("ab~@-_" + SEPARATORS), max_size=12)


def matches(pattern: str, subject: str) -> bool:
    """Whether NATS would deliver `subject` to a subscription on `pattern`."""
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(found) >= len(wanted) and all(map(_fits, wanted[:-1], found))
    return len(wanted) == len(found) and all(map(_fits, wanted, found))


def _fits(wanted: str, found: str) -> bool:
    return wanted in ("*", found)


def states(subjects: Subjects, task: Identity) -> list[str]:
    """Every subject that means that the task exists."""
    return [
        *(subjects.task(task, lane) for lane in ("", *grammar.LANES)),
        subjects.park(task),
        subjects.wake(task),
        subjects.result(task),
    ]


@given(prefixes, identities, lanes, tokens)
def test_what_is_built_is_parsed_back(subjects: Subjects, task: Identity, lane: str, name: str) -> None:
    built = {
        subjects.task(task, lane): Address(Kind.TASK, task.capability, task.id, lane),
        subjects.park(task): Address(Kind.PARK, task.capability, task.id),
        subjects.wake(task): Address(Kind.WAKE, task.capability, task.id),
        subjects.result(task): Address(Kind.RESULT, task.capability, task.id),
        subjects.step(task, name): Address(Kind.STEP, task.capability, task.id, name=name),
        subjects.dead_letter(task): Address(Kind.DEAD_LETTER, task.capability, task.id),
        subjects.done(task): Address(Kind.DONE, task.capability, task.id),
        subjects.part(task): Address(Kind.PART, task.capability, task.id),
    }

    parsed = {subject: subjects.parse(subject) for subject in built}

    assert parsed == built
    assert all(address.identity == task for address in parsed.values())


def build(subjects: Subjects, address: Address) -> str:
    task = address.identity
    builders: dict[Kind, Any] = {
        Kind.TASK: lambda: subjects.task(task, address.lane),
        Kind.STEP: lambda: subjects.step(task, address.name),
        Kind.DEAD_LETTER: lambda: subjects.dead_letter(task),
        Kind.PARK: lambda: subjects.park(task),
        Kind.WAKE: lambda: subjects.wake(task),
        Kind.RESULT: lambda: subjects.result(task),
        Kind.DONE: lambda: subjects.done(task),
        Kind.PART: lambda: subjects.part(task),
    }
    built: str = builders[address.kind]()
    return built


WORDS = ("task", "task@bulk", "task@", "task@nowhere", "park", "park@bulk", "step", "dead", "dead.letter", "ctl", "")


@given(prefixes, st.sampled_from(WORDS), capabilities | anything, ids | anything)
def test_what_is_parsed_is_built_back(subjects: Subjects, word: str, capability: str, task_id: str) -> None:
    subject = f"{subjects.prefix}.{word}.{capability}.{task_id}"

    try:
        address = subjects.parse(subject)
    except ContractError:
        return

    assert build(subjects, address) == subject.replace("task@.", "task.", 1)


@given(prefixes, anything, ids)
def test_any_text_is_parsed_or_refused_as_a_contract_error(subjects: Subjects, text: str, task_id: str) -> None:
    for subject in (text, f"{subjects.prefix}.{text}", f"{subjects.prefix}.task.{text}.{task_id}"):
        try:
            address = subjects.parse(subject)
        except ContractError:
            continue

        assert _accepts(grammar.check_capability, address.capability)
        assert address.id


@given(prefixes, identities, st.sampled_from(["nowhere", "Bulk", "bulk@", "@", "~"]))
def test_a_lane_that_nobody_knows_is_refused(subjects: Subjects, task: Identity, lane: str) -> None:
    with pytest.raises(ContractError, match="is of no known kind"):
        subjects.parse(subjects.task(task, lane))


@given(prefixes, identities)
def test_a_subject_of_another_mesh_is_refused(subjects: Subjects, task: Identity) -> None:
    stranger = Subjects(f"{subjects.prefix}x"[: grammar.PREFIX_LENGTH_MAX])
    assume(stranger.prefix != subjects.prefix)

    with pytest.raises(ContractError, match="is not below"):
        subjects.parse(stranger.task(task))


@given(prefixes, identities, tokens, st.integers(1, 99))
def test_a_step_and_a_child_never_share_a_subject(subjects: Subjects, task: Identity, name: str, number: int) -> None:
    steps = [
        subjects.step(task, name),
        subjects.attempt(task, number, "began"),
        subjects.attempt(task, number, "ended"),
    ]

    children = [
        Identity(task.capability, grammar.child_id(task.id, token))
        for token in (name, f"began-{number}", f"ended-{number}", "began")
    ]

    for child in children:
        assert not set(steps) & set(states(subjects, child))
        assert [step for step in steps if matches(subjects.any_state(child), step)] == []


@given(prefixes, identities, lanes)
def test_the_guard_covers_every_state_of_its_task(subjects: Subjects, task: Identity, lane: str) -> None:
    guard = subjects.any_state(task)

    assert all(matches(guard, subject) for subject in states(subjects, task))
    assert all(matches(guard, subject) for subject in subjects.unsettled(task))


@given(prefixes, identities, identities, tokens)
def test_the_guard_covers_nothing_of_another_task(
    subjects: Subjects, task: Identity, other: Identity, name: str
) -> None:
    assume(task != other)
    guard = subjects.any_state(task)
    strangers = [
        *states(subjects, other),
        *states(subjects, Identity(task.capability, f"{task.id}.~{name}")),
        subjects.step(other, name),
        subjects.step(task, name),
        subjects.attempt(task, 2, "began"),
        subjects.dead_letter(other),
    ]

    assert [subject for subject in strangers if matches(guard, subject)] == []


@given(prefixes, st.lists(identities, min_size=2, max_size=6, unique=True), tokens)
def test_no_two_subjects_of_tasks_are_the_same(subjects: Subjects, tasks: list[Identity], name: str) -> None:
    built = [
        subject
        for task in tasks
        for subject in (
            *states(subjects, task),
            subjects.step(task, name),
            subjects.dead_letter(task),
            subjects.done(task),
            subjects.part(task),
        )
    ]

    assert len(set(built)) == len(built)


@given(prefixes, identities, lanes, tokens)
def test_the_stream_stores_what_promises_rest_on_and_no_echo(
    subjects: Subjects, task: Identity, lane: str, name: str
) -> None:
    stored = [*states(subjects, task), subjects.step(task, name), subjects.dead_letter(task)]
    passing = [
        subjects.done(task),
        subjects.part(task),
        subjects.beat(name),
        subjects.event("joined", task),
        subjects.ctl(task.capability, "who-runs"),
    ]

    def filters(subject: str) -> list[str]:
        return [pattern for pattern in subjects.stored if matches(pattern, subject)]

    assert [len(filters(subject)) for subject in stored] == [1] * len(stored)
    assert [filters(subject) for subject in passing] == [[]] * len(passing)


@given(prefixes, identities, lanes)
def test_a_capability_and_lane_is_heard_by_its_own_filter_alone(subjects: Subjects, task: Identity, lane: str) -> None:
    subject = subjects.task(task, lane)

    heard = [other for other in ("", *grammar.LANES) if matches(subjects.tasks_of(task.capability, other), subject)]

    assert heard == [lane]
    assert matches(subjects.tasks_of(lane=lane), subject)
    assert not matches(subjects.tasks_of(f"{task.capability}x", lane), subject)
    assert subjects.capability_of(subject) == task.capability


@given(prefixes, identities)
def test_the_echo_of_a_result_is_where_waiters_listen(subjects: Subjects, task: Identity) -> None:
    source, destination = subjects.result_echo
    result = subjects.result(task)

    echoed = destination.replace(">", result.removeprefix(source.removesuffix(">")))

    assert matches(source, result)
    assert echoed == subjects.done(task)


@given(prefixes, capabilities, tokens, st.integers(0, 10**9).map(str))
def test_a_session_hears_its_tasks_and_no_others(subjects: Subjects, capability: str, root: str, token: str) -> None:
    heard = subjects.done_below(capability, root)

    assert matches(heard, subjects.done(Identity(capability, grammar.child_id(root, token))))
    assert not matches(heard, subjects.done(Identity(capability, root)))
    assert not matches(heard, subjects.done(Identity(capability, grammar.child_id(f"{root}x", token))))
    assert not matches(heard, subjects.done(Identity(capability, f"{root}.~{token}.~{token}")))


@given(anything)
def test_a_capability_is_letters_digits_dash_and_underscore(name: str) -> None:
    legal = (
        0 < len(name) <= grammar.CAPABILITY_LENGTH_MAX
        and name.isascii()
        and name.replace("-", "a").replace("_", "a").isalnum()
        and name[0] not in "-_"
    )

    assert _accepts(grammar.check_capability, name) is legal


@given(anything | st.text(characters, max_size=40))
def test_a_key_is_one_token_that_nats_takes_and_the_mesh_does_not_make(key: str) -> None:
    legal = (
        bool(key)
        and not key.startswith("~")
        and not any(character in SEPARATORS for character in key)
        and not any(ord(character) < 0x21 or 0x7F <= ord(character) <= 0xA0 for character in key)
        and not any("\ud800" <= character <= "\udfff" for character in key)
    )

    assert _accepts(grammar.check_key, key) is legal
    assert _accepts(grammar.check_step_name, key) is legal
    # An id may be a child's as well.
    assert grammar.is_legal_id(key) is legal or "." in key


@given(ids)
def test_ids_of_the_mesh_are_legal_at_every_depth(task_id: str) -> None:
    assert grammar.is_legal_id(task_id)


@given(ids, anything)
def test_a_dot_in_an_id_is_legal_before_a_mark_of_the_mesh_only(task_id: str, tail: str) -> None:
    is_child = tail.startswith("~") and "." not in tail and grammar.is_legal_id(tail[1:])
    legal = is_child or ("." not in task_id and re.fullmatch("~~[1-9][0-9]*", tail) is not None)

    assert grammar.is_legal_id(f"{task_id}.{tail}") is legal


lines = st.builds(Line, capabilities, tokens)
positions = st.integers(1, 10**9)


@given(lines, positions, tokens)
def test_a_position_in_a_line_is_read_back_from_the_id(line: Line, position: int, token: str) -> None:
    task = line.at(position)

    assert grammar.in_line(task) == (line, position)
    assert grammar.is_legal_id(task.id)
    assert grammar.is_legal_id(child := grammar.child_id(task.id, token))
    assert grammar.in_line(Identity(line.capability, child)) is None
    assert grammar.ancestry(task, (grammar.SESSION,))[-1] == task


@given(capabilities, ids | anything)
def test_an_id_that_is_no_position_in_a_line_is_in_none(capability: str, task_id: str) -> None:
    found = grammar.in_line(Identity(capability, task_id))

    assert found is None or found[0].at(found[1]) == Identity(capability, task_id)
    assert found is None or not _accepts(grammar.check_key, task_id)


@given(prefixes, lines, positions, tokens, st.integers(1, 99))
def test_a_task_in_a_line_never_shares_a_subject_with_what_is_below_a_task_of_that_key(
    subjects: Subjects, line: Line, position: int, name: str, number: int
) -> None:
    task, namesake = line.at(position), Identity(line.capability, line.key)

    below = [
        subjects.step(namesake, name),
        subjects.attempt(namesake, number, "began"),
        subjects.own_step(namesake, f"signal-{name}"),
        *states(subjects, Identity(line.capability, grammar.child_id(line.key, name))),
    ]

    assert not set(below) & set(states(subjects, task))
    assert [subject for subject in below if matches(subjects.any_state(task), subject)] == []


@given(prefixes, lines, positions, tokens)
def test_the_wildcard_of_a_line_covers_its_tasks_and_no_records_of_its_own(
    subjects: Subjects, line: Line, position: int, key: str
) -> None:
    covering = subjects.any_position(line)
    own = [subjects.line(line), subjects.place(line, key)]

    assert all(matches(covering, subject) for subject in states(subjects, line.at(position)))
    assert not any(matches(stored, subject) for stored in subjects.stored for subject in own)
    assert all(any(matches(stored, subject) for stored in subjects.lines_stored) for subject in own)


@given(prefixes, capabilities, st.sampled_from(["seats", "rate"]))
def test_what_is_in_use_of_a_resource_stands_in_a_stream_of_its_own_and_its_echo_in_none(
    subjects: Subjects, resource: str, kind: grammar.LimitKind
) -> None:
    record, echo = subjects.limit(kind, resource), subjects.limit_echo(kind, resource)
    source, destination = subjects.limit_echoes
    elsewhere = [*subjects.stored, *subjects.timers_stored("any"), *subjects.lines_stored, subjects.control_stored]

    assert subjects.parse_limit(record) == (kind, grammar.check_resource(resource))
    assert matches(source, record)
    assert matches(destination, echo)
    assert not matches(subjects.limits_stored, echo)
    assert not any(matches(stored, subject) for stored in elsewhere for subject in (record, echo))


@given(capabilities)
def test_the_control_key_of_a_limit_names_its_resource(resource: str) -> None:
    key = grammar.key_limit(resource)

    assert grammar.parse_limit_key(key) == resource
    assert grammar.parse_limit_key(f"limit.{resource}.more") is None
    assert grammar.parse_limit_key(f"pause.{resource}") is None
    assert (grammar.parse_pause(key), grammar.parse_cancel(key)) == (None, None)


@given(prefixes, st.lists(identities, min_size=1, max_size=4, unique=True), st.lists(tokens, min_size=1, unique=True))
def test_no_two_chunks_share_a_subject_or_a_stream_with_records(
    subjects: Subjects, tasks: list[Identity], names: list[str]
) -> None:
    chunks = [subjects.chunk(task, name, number) for task in tasks for name in names for number in (0, 1, 10)]

    assert len(set(chunks)) == len(chunks)
    assert all(any(matches(stored, chunk) for stored in subjects.objects_stored) for chunk in chunks)
    elsewhere = [
        *subjects.stored,
        *subjects.lines_stored,
        *(stored for task in tasks for stored in subjects.timers_stored(task.capability)),
    ]
    assert not any(matches(stored, chunk) for stored in elsewhere for chunk in chunks)


@pytest.mark.parametrize("character", ["a", "é", "語", "🐦"])
def test_an_id_is_measured_in_bytes_and_may_be_exactly_512(character: str) -> None:
    width = len(character.encode())
    longest = character * (grammar.ID_BYTES_MAX // width) + "a" * (grammar.ID_BYTES_MAX % width)

    assert grammar.check_key(longest) == longest
    assert grammar.is_legal_id(longest)
    assert not grammar.is_legal_id(longest + "a")
    with pytest.raises(ContractError, match="key of 513 bytes exceeds 512"):
        grammar.check_key(longest + "a")


def test_a_child_id_may_be_exactly_3000_bytes_and_no_more() -> None:
    parent = "p" * 5 + ".~levels" * ((grammar.CHILD_ID_BYTES_MAX - 10) // 8)
    rest = grammar.CHILD_ID_BYTES_MAX - len(parent) - len(".~")

    child = grammar.child_id(parent, "k" * rest)

    assert len(child.encode()) == grammar.CHILD_ID_BYTES_MAX
    assert grammar.is_legal_id(child)
    assert not grammar.is_legal_id(child + "k")
    with pytest.raises(ContractError, match="child id of 3001 bytes exceeds 3000: nested too deep"):
        grammar.child_id(parent, "k" * (rest + 1))


def test_a_long_id_of_one_token_is_illegal_however_much_room_children_have() -> None:
    assert not grammar.is_legal_id("p" * (grammar.ID_BYTES_MAX + 1))
    assert not grammar.is_legal_id("p" * (grammar.ID_BYTES_MAX + 1) + ".~kid")


@pytest.mark.parametrize(
    ("check", "longest"),
    [(grammar.check_capability, grammar.CAPABILITY_LENGTH_MAX), (grammar.check_step_name, grammar.STEP_BYTES_MAX)],
)
def test_names_of_capabilities_and_steps_have_a_longest(check: Any, longest: int) -> None:
    assert check("a" * longest) == "a" * longest
    with pytest.raises(ContractError, match=f"of {longest + 1} .* exceeds {longest}"):
        check("a" * (longest + 1))


@given(st.sampled_from(["key", "capability", "prefix"]), anything)
def test_a_refusal_shows_the_name_without_its_control_characters(what: str, name: str) -> None:
    check = {"key": grammar.check_key, "capability": grammar.check_capability, "prefix": Subjects}[what]

    told = f"{what} is fine"
    try:
        check(name)
    except ContractError as error:
        told = str(error)

    assert what in told
    assert told.isascii()
    assert told.isprintable()


@given(anything)
def test_a_prefix_is_plain_tokens(prefix: str) -> None:
    try:
        subjects = Subjects(prefix)
    except ContractError:
        return

    assert all(token and token.isascii() for token in prefix.split("."))
    assert not set(subjects.stream) & set(SEPARATORS)
    assert not set(subjects.control_bucket) & set(SEPARATORS)


@given(st.text(max_size=60))
def test_a_stand_in_for_an_illegal_id_is_legal_and_always_the_same(task_id: str) -> None:
    assert grammar.is_legal_id(grammar.stand_in(task_id))
    assert grammar.stand_in(task_id) == grammar.stand_in(task_id)
    assert grammar.stand_in(task_id) != grammar.stand_in(task_id + "x")


@given(prefixes, identities)
def test_the_key_of_a_cancel_names_its_task_and_nothing_else(subjects: Subjects, task: Identity) -> None:
    key = grammar.key_cancel(task)

    assert grammar.parse_cancel(key) == task
    assert grammar.parse_pause(key) is None
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


@given(prefixes, capabilities)
def test_the_key_of_a_pause_names_its_capability_and_nothing_else(subjects: Subjects, capability: str) -> None:
    key = grammar.key_pause(capability)

    assert grammar.parse_pause(key) == capability
    assert grammar.parse_cancel(key) is None
    assert grammar.parse_pause(f"route.{capability}") is None
    assert grammar.parse_cancel(f"route.{capability}.YQ") is None


@given(anything)
def test_any_text_is_a_control_key_or_none(text: str) -> None:
    for key in (text, f"cancel.a.{text}", f"pause.{text}", f"cancel.{text}.YQ"):
        cancelled, paused = grammar.parse_cancel(key), grammar.parse_pause(key)

        assert cancelled is None or cancelled.capability in key
        assert paused is None or grammar.check_capability(paused)


@given(prefixes, identities)
def test_a_control_record_and_its_echo_stand_for_the_same_key(subjects: Subjects, task: Identity) -> None:
    key = grammar.key_cancel(task)
    source, destination = subjects.control_echo
    record = subjects.control_record(key)

    echo = destination.replace(">", record.removeprefix(source.removesuffix(">")))

    assert matches(subjects.control_stored, record)
    assert matches(subjects.control_echoes, echo)
    assert subjects.control_key(record) == subjects.control_key(echo) == key
    with pytest.raises(ContractError, match="not a control record"):
        subjects.control_key(subjects.task(task))


@given(st.lists(st.tuples(capabilities, tokens), min_size=1, max_size=5))
def test_ancestry_runs_from_the_root_to_the_task(line: list[tuple[str, str]]) -> None:
    task_id = ".~".join(token for _, token in line)
    lineage = tuple(capability for capability, _ in line[:-1])
    task = Identity(line[-1][0], task_id)

    chain = grammar.ancestry(task, lineage)

    assert [member.capability for member in chain] == [capability for capability, _ in line]
    assert chain[0].id == grammar.root_of(task_id)
    assert chain[-1] == task
    assert [grammar.parent_of(member.id) for member in chain[1:]] == [member.id for member in chain[:-1]]
    assert grammar.parent_of(chain[0].id) == ""


@given(identities, st.lists(capabilities, max_size=6).map(tuple))
def test_a_lineage_that_does_not_fit_the_id_tells_of_no_ancestor(task: Identity, lineage: tuple[str, ...]) -> None:
    assume(len(lineage) != task.id.count("."))

    assert grammar.ancestry(task, lineage) == (task,)


def _accepts(check: Any, name: str) -> bool:
    try:
        return bool(check(name) == name)
    except ContractError:
        return False
