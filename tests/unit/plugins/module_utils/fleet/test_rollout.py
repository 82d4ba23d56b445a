# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a roll-out says of its hosts, made from what their tasks returned."""

from __future__ import annotations

import re
import typing as t

import pytest
from ansible_collections.ebpf.conntrack.plugins.module_utils.fleet import drift, rollout


def looked(ok: bool = True, generation: int | None = 3, **more: t.Any) -> dict[str, t.Any]:
    """What ct_preflight returns."""
    problems = (
        []
        if ok
        else [
            {
                "field": "state_dir",
                "value": "/var",
                "problem": "0 KiB are free.",
                "mend": "Make room.",
            }
        ]
    )
    return {
        "ok": ok,
        "problems": problems,
        "kernel": {"release": "6.12.1"},
        "chain": {"generation": generation, "healthy": True},
        "flows": None if generation is None else 7,
        "interfaces": [{"name": "eth0", "modes": ["native", "generic"]}],
        "memory": {"needed": 64 << 20, "available": 512 << 20},
        "would_install": [],
        **more,
    }


UNREACHABLE = {"unreachable": True, "msg": "Failed to connect\nto the host", "changed": False}


def test_a_table_lines_up_and_puts_numbers_at_the_right() -> None:
    rows: list[dict[str, t.Any]] = [
        {"host": "a", "flows": 5},
        {"host": "long", "flows": 1200},
        {"host": "c"},
    ]
    assert (
        rollout.table(rows, {"host": "HOST", "flows": "FLOWS"})
        == "HOST  FLOWS\na         5\nlong   1200\nc\n"
    )


def test_a_table_of_markdown_escapes_what_would_end_a_cell() -> None:
    assert (
        rollout.table([{"what": "a|b\nc"}], {"what": "What"}, "markdown")
        == "| What |\n| --- |\n| a\\|b c |\n"
    )


def test_all_hosts_are_fit() -> None:
    found = rollout.fitness(
        {
            "a": {"xdp_ct_preflight": looked()},
            "b": {"xdp_ct_preflight": looked(generation=None, would_install=["libbpf1"])},
        },
        False,
        False,
    )
    assert (found["ready"], found["stop"]) == (["a", "b"], "")
    assert (
        "eth0:native/generic" in found["table"]
        and "would install libbpf1" in found["table"]
        and "none" in found["table"]
    )


@pytest.mark.parametrize(
    ("skip", "stop"),
    [
        ((False, False), "b can not take the chain (b: state_dir: 0 KiB are free. Make room.)"),
        ((True, False), "c can not be reached"),
        ((True, True), ""),
    ],
)
def test_who_is_unfit_or_unreachable_stops_it_unless_left_out(
    skip: tuple[bool, bool], stop: str
) -> None:
    hosts = {
        "a": {"xdp_ct_preflight": looked()},
        "b": {"xdp_ct_preflight": looked(ok=False)},
        "c": {"xdp_ct_preflight": UNREACHABLE},
    }
    found = rollout.fitness(hosts, *skip)
    assert found["ready"] == ["a"] and found["hosts"] == ["a", "b", "c"]
    assert (
        (stop in found["stop"] and found["stop"].startswith("Nothing was changed"))
        if stop
        else found["stop"] == ""
    )


def test_who_needs_nothing_is_in_no_batch() -> None:
    nothing = {name: {"changed": False} for name in rollout.STEPS}
    hosts = {
        "a": {"xdp_ct_preflight": looked(), **nothing},
        "b": {
            "xdp_ct_preflight": looked(),
            **nothing,
            "xdp_ct_did_load": {"plan": [{}]},
            "xdp_ct_did_service": {"plan": [{}]},
        },
        "c": {
            "xdp_ct_preflight": looked(),
            **nothing,
            "xdp_ct_missing": {"changed": False, "stdout_lines": ["libbpf1"]},
        },
        "d": {"xdp_ct_preflight": looked(), **nothing, "xdp_ct_did_load": UNREACHABLE},
    }
    found = rollout.fitness(hosts, False, True)
    said = {line.split()[0]: line for line in found["table"].splitlines()}
    assert (found["ready"], found["stop"]) == (["b", "c"], "")
    assert (
        "as wanted" in said["a"]
        and said["b"].endswith("chain, service")
        and said["c"].endswith("packages")
        and "unreachable" in said["d"]
    )
    assert rollout.fitness({"a": hosts["a"]}, False, False)["stop"] == ""
    told = rollout.summary({**hosts, "b": of(1, **CHANGED)})
    assert [line.split()[-1] for line in told["table"].splitlines()[1:]] == [
        "changed",
        "unchanged",
        "touched",
        "unreachable",
    ]
    assert rollout.outcome({"d": hosts["d"]})["trouble"] == [], (
        "what was found before is no trouble of a batch"
    )


def test_a_chain_that_is_not_good_is_never_as_wanted() -> None:
    """Where something is to be done that is done; where nothing can be, the verdict says so, with
    what repairs it, and stops nobody.
    """
    fault = {
        "fault": "link_moved",
        "object": "eth0",
        "detail": "it was renamed",
        "repair": "ct detach eth0",
    }
    sick = looked(chain={"generation": 3, "healthy": False, "faults": [fault]})
    nothing = {name: {"changed": False, "plan": []} for name in rollout.STEPS}
    found = {
        "a": {"xdp_ct_preflight": sick, **nothing},
        "b": {
            "xdp_ct_preflight": sick,
            **nothing,
            "xdp_ct_did_load": {"plan": [{"action": "delete", "kind": "link", "name": "eth0"}]},
        },
    }
    fit = rollout.fitness(found, False, False)
    said = {line.split()[0]: line for line in fit["table"].splitlines()[1:]}
    assert fit["ready"] == ["b"] and fit["stop"] == ""
    assert (
        "as wanted" not in fit["table"]
        and "unhealthy" in said["a"]
        and "ct detach eth0" in said["a"]
        and "NOT GOOD" in said["a"]
    )
    assert rollout.summary_of("a", found["a"])["result"] == "unchanged, NOT GOOD"
    assert rollout.fitness({"a": found["a"]}, False, False)["stop"] == "", (
        "a host alone is no reason to stop"
    )


def test_a_host_whose_variables_are_refused_is_unfit_with_the_reason() -> None:
    found = rollout.fitness(
        {"a": {"rollout_refused": "Validation of arguments failed"}}, True, True
    )
    assert (
        found["stop"] == "Nothing was changed: no host can take the chain."
        and "Validation of arguments failed" in found["table"]
    )


def of(batch: int | None, **results: t.Any) -> dict[str, t.Any]:
    return {
        "xdp_ct_preflight": looked(),
        **({"rollout_batch": {"number": batch, "hosts": []}} if batch else {}),
        **results,
    }


CHANGED = {"xdp_ct_did_load": {"changed": True, "chain": {"generation": 4}}}
FIGURES = {"seconds": 10.0, "unseen": 0, "flows": 9}


def test_a_batch_in_which_nothing_changed() -> None:
    assert rollout.outcome({"a": of(1, xdp_ct_did_load={"changed": False}), "b": of(1)}) == {
        "changed": False,
        "trouble": [],
    }


def test_trouble_names_the_host_and_what_was_said() -> None:
    found = rollout.outcome(
        {
            "a": of(
                1,
                **CHANGED,
                rollout_failed="unseen: 12 of 20 received frames were not counted, 0 may be.",
            ),
            "b": of(1, xdp_ct_missing=UNREACHABLE),
            "c": of(1, **CHANGED),
        }
    )
    assert found["changed"]
    assert found["trouble"] == [
        "a: unseen: 12 of 20 received frames were not counted, 0 may be.",
        "b: it was lost (Failed to connect to the host)",
    ]


def test_the_summary_of_a_roll_out_that_went_well() -> None:
    found = rollout.summary(
        {
            "b": of(2, xdp_ct_did_load={"changed": False, "chain": {"generation": 3}}),
            "a": of(1, **CHANGED, rollout_soaked={"figures": FIGURES}),
        }
    )
    lines = [line.split() for line in found["table"].splitlines()]
    assert lines[1] == ["a", "1", "3", "4", "10.0", "0", "7", "9", "changed"]
    assert lines[2] == ["b", "2", "3", "3", "7", "unchanged"]


def test_the_summary_of_a_batch_that_was_put_back() -> None:
    back = {"changed": True, "chain": {"generation": 3}}
    found = rollout.summary(
        {
            "a": of(1, **CHANGED),
            "b": of(2, **CHANGED, rollout_failed="probe: it ended with 1.", rollout_put_back=back),
            "c": of(
                2, **CHANGED, rollout_put_back={"failed": True, "msg": "generation 3 is not pinned"}
            ),
            "d": of(2, xdp_ct_did_load=UNREACHABLE),
            "e": of(2, rollout_put_back={"skipped": True, "changed": False}),
            "f": of(None),
            "g": {"xdp_ct_preflight": looked(ok=False)},
        }
    )
    said = {line.split()[0]: line for line in found["table"].splitlines()}
    assert (
        said["a"].endswith("changed")
        and said["b"].endswith("failed, put back")
        and said["c"].endswith("changed, NOT PUT BACK: generation 3 is not pinned")
    )
    assert (
        said["d"].endswith("lost")
        and said["e"].endswith("unchanged")
        and said["f"].endswith("not touched")
        and said["g"].endswith("left out, unfit")
    )
    assert (
        found["message"]
        == "Batch 2 is not well: b: probe: it ended with 1; d: it was lost (Failed to connect to"
        " the host). Put back: b. Not put back: c. 1 host of later batches was not touched."
    )


def test_who_had_nothing_to_be_put_back_is_not_told_as_put_back() -> None:
    found = rollout.summary(
        {
            "a": of(
                1,
                rollout_failed="Install them: no route",
                rollout_put_back={"changed": False, "chain": {"generation": None}},
            )
        }
    )
    assert "failed, nothing to put back" in found["table"] and found["message"].endswith(
        "Put back: none."
    )


def test_batches_are_counted() -> None:
    assert rollout.batch({"a": of(None)}, ["a"]) == {"number": 1, "hosts": ["a"]}
    assert rollout.batch({"a": of(1), "b": of(2), "c": of(None)}, ["c"])["number"] == 3
    assert (
        rollout.batch({"a": of(1), "b": of(1), "c": of(1), "d": of(None)}, ["d"])["number"] == 2
    ), "batches, not hosts"


SOAK_LOST = {**CHANGED, "rollout_soaked": UNREACHABLE}
BACK = {"changed": True, "chain": {"generation": 3}}


@pytest.mark.parametrize(
    ("results", "result", "back", "stuck"),
    [
        ({}, "lost", "none", ""),
        (
            {"rollout_put_back": UNREACHABLE},
            "lost, NOT PUT BACK: Failed to connect to the host",
            "none",
            " Not put back: a.",
        ),
        ({"rollout_put_back": BACK}, "lost, put back", "a", ""),
        ({"rollout_put_back": {**BACK, "changed": False}}, "lost, nothing to put back", "none", ""),
        ({"rollout_put_back": {"skipped": True, "changed": False}}, "lost", "none", ""),
    ],
)
def test_a_host_that_is_lost_while_it_soaks(
    results: dict[str, t.Any], result: str, back: str, stuck: str
) -> None:
    found = rollout.summary({"a": of(1, **SOAK_LOST, **results)})
    assert found["table"].splitlines()[1].endswith(f" {result}")
    assert (
        found["message"]
        == "Batch 1 is not well: a: it was lost (Failed to connect to the host). Put back:"
        f" {back}.{stuck}"
    )


def test_a_host_that_failed_and_is_unreachable_when_it_is_put_back() -> None:
    found = rollout.summary(
        {
            "a": of(1, **CHANGED, rollout_failed="probe: 1", rollout_put_back=UNREACHABLE),
            "b": of(None),
            "c": of(None),
        }
    )
    assert "failed, NOT PUT BACK: Failed to connect to the host" in found["table"]
    assert (
        found["message"]
        == "Batch 1 is not well: a: probe: 1. Put back: none. Not put back: a. 2 hosts of later"
        " batches were not touched."
    )


def test_the_message_names_the_last_batch_with_trouble() -> None:
    found = rollout.summary(
        {
            "a": of(1, **CHANGED, rollout_failed="x"),
            "b": of(2, **CHANGED, rollout_failed="y"),
            "c": of(3, **CHANGED),
        }
    )
    assert found["message"].startswith("Batch 2 is not well: a: x; b: y.")
    assert [line.split()[0] for line in found["table"].splitlines()[1:]] == ["a", "b", "c"]


def test_nobody_left_to_take_it_stops_in_the_words_of_going_back() -> None:
    hosts = {
        "a": {
            "xdp_ct_preflight": looked(ok=False),
            "rollout_back": True,
            "rollout_refused": "generation 2 is not pinned",
        }
    }
    assert (
        "a can not go back (a: generation 2 is not pinned)"
        in rollout.fitness(hosts, False, False)["stop"]
    )
    assert (
        rollout.fitness(hosts, True, False)["stop"] == "Nothing was changed: no host can go back."
    )
    del hosts["a"]["rollout_refused"]
    assert rollout.fitness(hosts, False, False)["ready"] == ["a"], (
        "what it had before it needs nothing more for"
    )


def test_what_a_host_has_is_said_as_it_is() -> None:
    row = rollout.fitness_of("a", {"xdp_ct_preflight": looked()})
    assert (row["chain"], row["memory"], row["available"]) == ("3", "64 MiB", "512 MiB")
    sick = looked(chain={"generation": 3, "healthy": False}, memory=None)
    row = rollout.fitness_of("a", {"xdp_ct_preflight": sick})
    assert (row["chain"], row["memory"], row["available"]) == ("3, NOT GOOD", None, None)
    assert rollout.fitness_of("a", {"xdp_ct_preflight": looked(generation=None)})["chain"] == "none"
    assert rollout.fitness_of("a", {"xdp_ct_preflight": looked(chain=None)})["chain"] is None


def test_batches_stand_in_the_summary_in_their_order_and_the_rest_last() -> None:
    found = rollout.summary(
        {"z": of(None), "b": of(2, **CHANGED, rollout_failed="x"), "a": of(1, **CHANGED)}
    )
    assert [line.split()[0] for line in found["table"].splitlines()[1:]] == ["a", "b", "z"]


# ---------------------------------------------------------------- a host that was taken over
NONSENSE: tuple[t.Any, ...] = (
    "text",
    7,
    ["a"],
    {"ok": True},
    {**looked(), "chain": []},
    {**looked(), "chain": {"generation": 1}},
    {**looked(), "memory": {"needed": "x", "available": None}},
    {**looked(), "interfaces": [{"name": "eth0"}]},
    {**looked(), "interfaces": 5},
    {**looked(), "problems": [None]},
    {**looked(), "kernel": None},
    {**looked(), "would_install": [7]},
)


@pytest.mark.parametrize("answer", NONSENSE)
def test_an_answer_without_sense_stops_its_host_alone(answer: t.Any) -> None:
    hosts = {"good": {"xdp_ct_preflight": looked()}, "bad": {"xdp_ct_preflight": answer}}
    found = rollout.fitness(hosts, skip_unfit=True, skip_unreachable=False)
    assert (found["ready"], found["stop"]) == (["good"], "")
    assert re.search(r"bad +unfit .* not understood \([A-Za-z]+Error: ", found["table"])
    for step in ("xdp_ct_did_load", "rollout_soaked"):
        batch = {
            name: {
                **one,
                "rollout_batch": {"number": 1},
                step: answer if name == "bad" else {"changed": True},
            }
            for name, one in hosts.items()
        }
        outcome = rollout.outcome(batch)
        assert outcome["changed"] and all(one.startswith("bad: ") for one in outcome["trouble"])
        assert "good" in rollout.summary(batch)["table"]
    for report in (drift.report(hosts, "table")["text"], drift.left(hosts)):
        assert "good" in report and "bad" in report


def test_nothing_that_a_host_says_makes_a_line_or_reaches_the_terminal() -> None:
    said = "no\n  good2  ready\x1b[2J\x9b31m"
    hosts = {
        "bad": {
            "xdp_ct_preflight": {"msg": said},
            "rollout_refused": said,
            "rollout_batch": {"number": 1},
            "rollout_failed": said,
        }
    }
    fit = rollout.fitness(hosts, False, False)
    texts = [
        fit["table"],
        fit["stop"],
        *rollout.outcome(hosts)["trouble"],
        *rollout.summary(hosts).values(),
    ]
    texts += [drift.report(hosts, form)["text"] for form in drift.FORMS]
    for text in texts:
        assert text.replace("\n", "").isprintable() and not any(
            line.strip().startswith("good2") for line in text.splitlines()
        ), text
