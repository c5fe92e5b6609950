"""What station.toml says about the broker: the table `[mqtt]`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

TopicLevel = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$")]
"""One level of a topic (site, line, station): letters, digits, `_`, `-`, `.`, so never a wildcard, a slash or a `$`."""


def _named(value: object) -> object:
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError("must name a file")
    return value


FileName = Annotated[Path, BeforeValidator(_named), Field(strict=False)]
"""A path, written as a string that is not empty."""


def on_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class MqttSettings(BaseModel):
    """The broker, and how to reach it. TLS and credentials are the default unless the broker is on loopback."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    host: str = Field(
        "localhost", pattern=r"^[A-Za-z0-9._:%-]+$", title="Broker", description="host name or address of the broker"
    )
    port: int = Field(0, ge=0, le=65535, title="Port", description="TCP port; 0 = 8883 with TLS, 1883 without")
    protocol: Literal["auto", "5", "3.1.1"] = Field(
        "auto", title="Protocol", description="MQTT version; auto = 5, and 3.1.1 where the broker cannot speak 5"
    )
    tls: bool | None = Field(
        None, title="TLS", description="encrypt and verify the broker; unset = yes, except on loopback"
    )
    ca_file: FileName | None = Field(
        None, title="CA certificates", description="PEM file that signs the broker's certificate; unset = the system's"
    )
    cert_file: FileName | None = Field(None, title="Client certificate", description="PEM file; needs key_file")
    key_file: FileName | None = Field(
        None, title="Client key", description="PEM file, readable by the service user only"
    )
    username: str | None = Field(None, title="User", description="user name of this box at the broker")
    password_file: FileName | None = Field(
        None, title="Password file", description="file whose first line is the password; never written to a log"
    )
    anonymous: bool = Field(
        False, title="Anonymous", description="allow no credentials with a broker that is not on loopback"
    )
    keepalive_s: int = Field(
        10, ge=2, le=600, title="Keep-alive", description="silence after which the connection counts as dead, seconds"
    )
    in_flight: int = Field(
        64, ge=1, le=1000, title="In flight", description="verdicts sent and not yet acknowledged by the broker"
    )
    backlog_rows: int = Field(
        1_000_000,
        ge=1000,
        title="Backlog",
        description="unsent outcomes kept for a broker that is away; older ones are skipped and counted",
    )

    @property
    def use_tls(self) -> bool:
        return self.tls if self.tls is not None else not on_loopback(self.host)

    @property
    def use_port(self) -> int:
        return self.port or (8883 if self.use_tls else 1883)

    @model_validator(mode="after")
    def _complete(self) -> MqttSettings:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both or neither")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file without username: give the user name too")
        if not self.use_tls and (self.cert_file or self.ca_file):
            raise ValueError("cert_file, key_file and ca_file need TLS: set tls = true")
        if not on_loopback(self.host) and not (self.username or self.cert_file or self.anonymous):
            raise ValueError(
                f"broker {self.host!r} is not on this box and no credentials are given: "
                "set username and password_file, or cert_file and key_file, or anonymous = true"
            )
        return self
