"""One Modbus connection: asynchronous pymodbus, because its synchronous client measures time-outs by the wall clock.

A request that is not answered in time, or answered by an exception or by the answer to another request, raises
`WireError` with the cause. RTU has no transaction numbers, so a late answer may meet the next request: it is known by
its kind, address or length (the path asks for another length after each answer that did not come), and then nothing is
asked for one time-out, so that the rest meets nobody.
"""

from __future__ import annotations

import asyncio
import logging
import termios
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerType
from pymodbus.pdu import ModbusPDU

from firmware_bridge.modbus import registers as r
from firmware_bridge.modbus.settings import ModbusSettings

logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)  # it shouts on each try; the path says it once

Client: TypeAlias = AsyncModbusTcpClient | AsyncModbusSerialClient


class WireError(Exception):
    """`cause` is the counter's name; the message is for people."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class Wire:
    def __init__(self, settings: ModbusSettings) -> None:
        self._settings = settings
        self._serial = settings.transport == "rtu"
        self._client: Client | None = None

    @property
    def where(self) -> str:
        return self._settings.device if self._serial else f"{self._settings.host}:{self._settings.port}"

    async def connect(self) -> None:
        """Connect anew. Raises WireError when there is nobody."""
        self.close()
        s, timeout_s = self._settings, self._settings.answer_timeout_ms / 1000
        if self._serial:
            self._client = AsyncModbusSerialClient(
                s.device,
                framer=FramerType.RTU,
                baudrate=s.baud,
                parity=s.parity,
                stopbits=2 if s.parity == "N" else 1,
                timeout=timeout_s,
                retries=0,
                reconnect_delay=0,
            )
        else:
            self._client = AsyncModbusTcpClient(s.host, port=s.port, timeout=timeout_s, retries=0, reconnect_delay=0)
        try:
            connected = await self._client.connect()
        except (OSError, ValueError, termios.error) as error:
            self.close()
            raise WireError("unreachable", f"{self.where} cannot be used: {error}. Correct [reject].") from error
        if not connected:
            self.close()
            advice = "Check host, port and the network"
            if self._serial:
                advice = "Plug it in, end what else uses it, or correct device"
            raise WireError("unreachable", f"no PLC at {self.where}. {advice} in [reject].")

    async def read(self, address: int, count: int) -> list[int]:
        """Holding registers, words of 16 bits."""
        response = await self._ask(
            lambda client: client.read_holding_registers(address, count=count, device_id=self._settings.unit)
        )
        if len(response.registers) != count:
            raise await self._wrong(f"{self.where} answers {len(response.registers)} registers instead of {count}")
        return list(response.registers)

    async def write(self, address: int, words: list[int]) -> None:
        response = await self._ask(lambda client: client.write_registers(address, words, device_id=self._settings.unit))
        if response.address != address:
            raise await self._wrong(f"{self.where} confirms register {response.address} instead of {address}")

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _ask(self, request: Callable[[Client], Awaitable[ModbusPDU]]) -> ModbusPDU:
        if self._client is None or not self._client.connected:
            raise WireError("lost", f"the connection to {self.where} is lost")
        try:
            response = await request(self._client)
        except ModbusException as error:
            advice = "baud, parity and unit" if self._serial else "host, port and unit"
            waited_ms = self._settings.answer_timeout_ms
            message = f"{self.where} does not answer in {waited_ms} ms. Check {advice} in [reject]."
            raise WireError("no_answer", message) from error
        if response.isError():
            raise await self._wrong(
                f"{self.where} answers exception {response.exception_code}: check plc_base and box_base in [reject], "
                f"where {r.PLC_WORDS} and {r.BOX_WORDS} holding registers must be",
                "exceptions",
            )
        return response

    async def _wrong(self, message: str, cause: str = "wrong_answer") -> WireError:
        if self._serial:
            await asyncio.sleep(self._settings.answer_timeout_ms / 1000)
        return WireError(cause, message)
