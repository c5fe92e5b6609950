/* Between the files of the core; no port needs this. */
#ifndef BELTLINE_RC_INTERNAL_H
#define BELTLINE_RC_INTERNAL_H

#include "reject_controller.h"

/* rc_parts.c: the shift register and the outcomes */
void rc_parts_clear(struct reject_controller *rc);
void rc_parts_add(struct reject_controller *rc, uint32_t count, uint32_t at_us);
uint8_t rc_parts_decide(struct reject_controller *rc, uint32_t part, uint8_t decision, uint8_t reason);
void rc_parts_condemn_last(struct reject_controller *rc); /* another part is too close to the last latched one */
void rc_parts_foreign(struct reject_controller *rc); /* an unfollowed part lies at the eye */
void rc_parts_advance(struct reject_controller *rc); /* decision points and parts past the gate */
void rc_parts_reject_undecided(struct reject_controller *rc, uint8_t reason);
void rc_parts_flush(struct reject_controller *rc, uint8_t reason); /* positions are worthless: settle all as FAULT */
uint32_t rc_parts_settled_through(const struct reject_controller *rc);

/* rc_gate.c */
void rc_gate_update(struct reject_controller *rc);
void rc_gate_unproven(struct reject_controller *rc);
void rc_gate_encoder_silent(struct reject_controller *rc);

/* rc_messages.c */
void rc_send(struct reject_controller *rc, uint8_t type, uint16_t sequence, const uint8_t *payload, uint16_t length);
void rc_send_status(struct reject_controller *rc);
void rc_send_outcome(struct reject_controller *rc, const struct rc_outcome *outcome);

/* reject_controller.c */
void rc_latch(struct reject_controller *rc, uint8_t fault);
uint8_t rc_acknowledge(struct reject_controller *rc);
bool rc_permitted(const struct reject_controller *rc);

/* Signed distance on the wrapping counter: positive when `to` lies ahead of `from`. */
static inline int32_t rc_ahead(uint32_t to, uint32_t from)
{
    uint32_t distance = to - from;
    return distance <= 0x7FFFFFFFu ? (int32_t)distance : -(int32_t)(~distance) - 1;
}

#endif
