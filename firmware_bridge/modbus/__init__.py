"""Modbus towards a plant's own tracking PLC."""

from firmware_bridge.modbus.settings import ModbusSettings

__all__ = ["ModbusSettings"]
