/* The shift register: parts between eye and gate, in order, followed by counts. */
#include "rc_internal.h"

static struct rc_part *part_at(struct reject_controller *rc, uint32_t index)
{
    return &rc->parts[(rc->head + index) % RC_REGISTER];
}

static void settle(struct reject_controller *rc, uint32_t part, uint8_t decision, uint8_t reason)
{
    struct rc_outcome *outcome = &rc->memory[part % RC_MEMORY];
    outcome->part = part;
    outcome->count = rc->count;
    outcome->decision = decision;
    outcome->reason = reason;
    rc_send_outcome(rc, outcome);
}

static void make_fault(struct rc_part *part, uint8_t reason)
{
    part->decision = RC_FAULT;
    part->reason = reason;
    part->final = true;
}

void rc_parts_clear(struct reject_controller *rc)
{
    rc->head = 0;
    rc->length = 0;
    rc->last_part = 0;
    for (uint32_t i = 0; i < RC_MEMORY; i++) {
        rc->memory[i].part = 0;
    }
}

static void send_trigger(struct reject_controller *rc, const struct rc_part *part, uint32_t at_us)
{
    uint8_t payload[16];
    wire_put_u32(payload, part->part);
    wire_put_u32(payload + 4, part->count);
    wire_put_u32(payload + 8, part->count + rc->parameters.decision_distance);
    wire_put_u32(payload + 12, at_us);
    rc_send(rc, RC_TRIGGER, 0, payload, sizeof payload);
}

/* The belt may have swung back before this edge came. */
static bool too_close_to_last(const struct reject_controller *rc, uint32_t count)
{
    uint32_t since = count - rc->last_trigger_count + RC_REVERSE_LIMIT;
    return rc->last_trigger_known && since < rc->parameters.min_spacing + RC_REVERSE_LIMIT;
}

static bool too_close_to_unfollowed(const struct reject_controller *rc, uint32_t count)
{
    return rc->unproven && rc_ahead(count - rc->parameters.window_before, rc->unproven_count) < 0;
}

void rc_parts_condemn_last(struct reject_controller *rc)
{
    rc->counters[RC_TOO_CLOSE]++;
    if (rc->length > 0 && part_at(rc, rc->length - 1)->part == rc->last_part) {
        make_fault(part_at(rc, rc->length - 1), RC_OVERRUN);
    }
    rc_gate_unproven(rc);
}

void rc_parts_foreign(struct reject_controller *rc)
{
    if (rc->last_trigger_known && rc->peak - rc->last_trigger_count <= 2 * rc->parameters.window_after) {
        rc_parts_condemn_last(rc);
    } else {
        rc_gate_unproven(rc);
    }
}

void rc_parts_add(struct reject_controller *rc, uint32_t count, uint32_t at_us)
{
    bool too_close = true;
    if (too_close_to_last(rc, count)) { /* the gate cannot tell the two apart: neither may pass */
        rc_parts_condemn_last(rc);
    } else if (too_close_to_unfollowed(rc, count)) { /* the last part may lie far ahead of both */
        rc->counters[RC_TOO_CLOSE]++;
        rc_gate_unproven(rc);
    } else {
        too_close = false;
    }
    struct rc_part part = {++rc->last_part, count, RC_UNDECIDED, 0, false};
    rc->io.strobe(rc->io.user, rc->epoch, part.part);
    send_trigger(rc, &part, at_us);
    if (too_close) {
        make_fault(&part, RC_OVERRUN);
    }
    rc->last_trigger_known = true;
    rc->last_trigger_count = count;
    if (rc->length == RC_REGISTER) {
        rc->counters[RC_OVERRUNS]++;
        rc_gate_unproven(rc); /* nobody follows this part */
        settle(rc, part.part, RC_FAULT, RC_OVERRUN);
        return;
    }
    if (!rc_permitted(rc)) {
        make_fault(&part, RC_NOT_PERMITTED);
    }
    rc->eye_followed = !too_close;
    *part_at(rc, rc->length) = part;
    rc->length++;
}

uint8_t rc_parts_decide(struct reject_controller *rc, uint32_t number, uint8_t decision, uint8_t reason)
{
    if (decision < RC_ACCEPT || decision > RC_FAULT || reason == 0 || reason >= RC_REASONS ||
        (decision == RC_ACCEPT && reason != RC_SCORE_BELOW_THRESHOLD)) {
        rc->counters[RC_BAD_MESSAGES]++;
        return RC_BAD_VALUE;
    }
    for (uint32_t i = 0; i < rc->length; i++) {
        struct rc_part *part = part_at(rc, i);
        if (part->part != number) {
            continue;
        }
        if (part->final) {
            if (part->reason == RC_NO_VERDICT) {
                rc->counters[RC_LATE_DECISIONS]++;
                if (decision != RC_FAULT) { /* a FAULT that came too late is still a FAULT */
                    part->decision = RC_REJECT;
                    part->reason = RC_LATE;
                }
                return RC_LATE_DECISION;
            }
            return part->decision == decision && part->reason == reason ? RC_OK : RC_SETTLED;
        }
        if (part->decision == RC_UNDECIDED) {
            part->decision = decision;
            part->reason = reason;
            rc_gate_update(rc);
            return RC_OK;
        }
        if (part->decision != decision) {
            rc->counters[RC_CONFLICTS]++;
            return RC_SETTLED;
        }
        return RC_OK; /* a retry */
    }
    if (number != 0 && rc->memory[number % RC_MEMORY].part == number) {
        if (rc->memory[number % RC_MEMORY].reason == RC_NO_VERDICT) {
            rc->counters[RC_LATE_DECISIONS]++;
            return RC_LATE_DECISION;
        }
        return RC_SETTLED;
    }
    rc->counters[RC_UNKNOWN_PARTS]++;
    return RC_UNKNOWN_PART;
}

void rc_parts_advance(struct reject_controller *rc)
{
    const struct rc_parameters *p = &rc->parameters;
    for (uint32_t i = 0; i < rc->length; i++) {
        struct rc_part *part = part_at(rc, i);
        bool decision_point = rc_ahead(rc->count, part->count + p->decision_distance) >= 0;
        /* at high speed the actuator's lead can put the gate's moment before the decision point */
        bool gate_moment = rc_ahead(rc->virtual_count, part->count + p->gate_distance - p->window_before) >= 0;
        if (!decision_point && !gate_moment) {
            break;
        }
        if (!part->final && part->decision == RC_UNDECIDED) {
            make_fault(part, RC_NO_VERDICT);
        }
        part->final = true;
    }
    while (rc->length > 0) {
        struct rc_part *part = part_at(rc, 0);
        if (rc_ahead(rc->count, part->count + p->gate_distance + p->window_after) < 0) {
            break;
        }
        rc->head = (rc->head + 1) % RC_REGISTER;
        rc->length--;
        settle(rc, part->part, part->decision, part->reason);
    }
}

void rc_parts_reject_undecided(struct reject_controller *rc, uint8_t reason)
{
    for (uint32_t i = 0; i < rc->length; i++) {
        struct rc_part *part = part_at(rc, i);
        if (part->decision == RC_UNDECIDED) {
            make_fault(part, reason);
        }
        part->final = true;
    }
}

void rc_parts_flush(struct reject_controller *rc, uint8_t reason)
{
    while (rc->length > 0) {
        struct rc_part *part = part_at(rc, 0);
        rc->head = (rc->head + 1) % RC_REGISTER;
        rc->length--;
        settle(rc, part->part, RC_FAULT, reason);
    }
    rc->last_trigger_known = false;
    rc_gate_unproven(rc);
    rc_gate_update(rc);
}

uint32_t rc_parts_settled_through(const struct reject_controller *rc)
{
    return rc->length == 0 ? rc->last_part : rc->parts[rc->head].part - 1;
}
