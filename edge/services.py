"""Everything that runs on the box, in one table: who does what, how often, within what, and what its death means."""

from __future__ import annotations

from typing import NamedTuple


class Service(NamedTuple):
    name: str
    runs_as: str
    rate: str
    budget: str
    does: str
    when_it_dies: str


SERVICES = (
    Service(
        "loop",
        "main thread of `beltline run`",
        "each part; self-test every 80 ms between parts",
        "1 ms beside decode, front end and graph (p99)",
        "takes the part's frame, scores it, decides, tells the reject path, tells the journal",
        "the process ends: no heartbeat, the belt's permit drops; systemd starts it again",
    ),
    Service(
        "grab",
        "thread of `run` (camera and belt sources)",
        "each picture",
        "one copy of the picture",
        "keeps a short ring of time-stamped pictures",
        "parts become FAULT, no frame; an unplugged camera is opened again within 2 s",
    ),
    Service(
        "link",
        "thread of `run`",
        "heartbeat every 100 ms",
        "5 ms from decision to wire",
        "speaks with the reject controller or the PLC, repeats what was not acknowledged; journals triggers and "
        "tells the source to expect their pictures",
        "heartbeat stops: after 300 ms the controller rejects every part and drops the permit",
    ),
    Service(
        "journal",
        "thread of `run`",
        "one commit per 50 ms at most",
        "200,000 writes in memory while the disk fails",
        "commits triggers and outcomes in groups",
        "outcomes stay in memory up to the bound, then the oldest are dropped and counted",
    ),
    Service(
        "control",
        "thread of `run`",
        "on request",
        "0.5 s for a silent client",
        "answers `beltline status`, `ack`, `jog-gate`",
        "the station inspects on, unseen",
    ),
    Service(
        "publish",
        "process `beltline publish`",
        "each outcome",
        "1,000,000 outcomes behind",
        "sends the journal's outcomes to the MQTT broker",
        "the station inspects on; what was not sent is sent after the restart",
    ),
)
