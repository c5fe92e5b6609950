"""Modbus towards a plant's own tracking PLC: the smallest form in which it can tell parts and hear decisions.

The PLC is the Modbus server; it owns photo-eye, encoder, shift register and gate. The box is the client, polls the
PLC's block (function 3) and writes its own (function 16). All registers are holding registers; 32-bit values take two,
high word first unless `word_order` says otherwise. Parts live in rings of eight slots, slot = part modulo 8, so that a
busy box or a slow line may fall eight parts behind before one is lost. More than eight parts may be between photo-eye
and gate: a decision waits until the part before it in its slot has its outcome. docs/modbus.md is the page for PLC
programmers.

PLC block, from `plc_base`: 128 registers

    0       0xB171                 this map, version 1: anything else is not a beltline PLC
    1       status bits            0 ready, 1 belt permitted, 2 fault latched, 3 gate inhibited; others 0
    2       fault code             the PLC's own number, shown to people; 0 = none
    3-4     epoch                  a number never used before, drawn at each start of the PLC program
    5-6     encoder count now      7-8  milliseconds now
    9-10    newest part            counts from 1 within the epoch; written after its slot is complete
    11-12   newest settled part    written after its outcome slot is complete
    16 + 8s part, encoder count at the photo-eye, count of the decision point, milliseconds at the photo-eye (2 each)
    80 + 6s part (2), decision, reason, encoder count (2)                      outcome

Box block, from `box_base`: 52 registers

    0       heartbeat              changes every 100 ms without box fault; unchanged for 300 ms = fault, reject all
    1       box fault code         0 none, 1 scoring stands still, 2 epoch refused, 3 wrong register map,
                                   4 gate held without dry run
    2       flags                  bit 0: hold the gate in its passing state (dry run)
    3       acknowledge            written only when a person acknowledges the latched fault: the value found, plus 1
    4 + 6s  epoch (2), part (2), decision, check = 0xFFFF xor the five registers before it

decision: 1 ACCEPT, 2 REJECT, 3 FAULT; 0 in an outcome: unknown. reason: 1 as the box asked, 2 late, 3 no verdict,
4 heartbeat lost, 5 not permitted, 6 overrun, 7 encoder.

The PLC passes a part only if, at its decision point, the part's slot holds this epoch, this part, decision 1 and a
right check; everything else is a reject. So an old, torn, missing or repeated write can never pass a part, and no
acknowledgement is needed. What became of a part is what the PLC echoes; nothing is inferred.

What can go wrong: no answer, an exception answer, garbage on the line, an answer to an earlier request, a PLC that
restarts (new epoch) or forgets to draw a new one (refused: its part number went back), parts overwritten before they
were read, an unplugged adapter. Each is counted by cause; the connection is made again with back-off; scoring never
waits for any of it.
"""

from firmware_bridge.modbus.look import probe
from firmware_bridge.modbus.path import ModbusPath
from firmware_bridge.modbus.settings import ModbusSettings
from firmware_bridge.modbus.wire import WireError

__all__ = ["ModbusPath", "ModbusSettings", "WireError", "probe"]
