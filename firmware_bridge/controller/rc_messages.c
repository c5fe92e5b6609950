/* What the box may ask, and what it is told. Every request is answered with its own sequence number. */
#include "rc_internal.h"

void rc_send(struct reject_controller *rc, uint8_t type, uint16_t sequence, const uint8_t *payload, uint16_t length)
{
    struct wire_frame frame;
    uint8_t bytes[WIRE_MAX_ENCODED];
    frame.type = type;
    frame.epoch = rc->epoch;
    frame.sequence = sequence;
    frame.length = length;
    for (uint16_t i = 0; i < length; i++) {
        frame.payload[i] = payload[i];
    }
    if (!rc->io.send(rc->io.user, bytes, wire_encode(&frame, bytes))) {
        rc->counters[RC_SEND_OVERFLOWS]++;
    }
}

static void reply(struct reject_controller *rc, uint16_t sequence, uint8_t result)
{
    rc_send(rc, RC_REPLY, sequence, &result, 1);
}

/* The next counter to tell: one that changed, else the next in turn. */
static uint8_t pick_counter(struct reject_controller *rc)
{
    uint8_t pick = rc->told_next;
    for (uint8_t i = 0; i < RC_COUNTERS; i++) {
        uint8_t at = (uint8_t)((rc->told_next + i) % RC_COUNTERS);
        if (rc->counters[at] != rc->told[at]) {
            pick = at;
            break;
        }
    }
    rc->told[pick] = rc->counters[pick];
    rc->told_next = (uint8_t)((pick + 1) % RC_COUNTERS);
    return pick;
}

/* u32 now us, u32 count, u32 last part, u32 settled through, u32 parameter hash, u32 nonce, u8 faults, u8 flags
 * (1 permit, 2 parameters set, 4 inhibited, 8 gate energised, 16 encoder known), u8 counter (rc_counter), u32 its
 * value. One counter at a time, because a TRIGGER must not wait long behind a STATUS. */
void rc_send_status(struct reject_controller *rc)
{
    uint8_t payload[31];
    wire_put_u32(payload, rc->now_us);
    wire_put_u32(payload + 4, rc->count);
    wire_put_u32(payload + 8, rc->last_part);
    wire_put_u32(payload + 12, rc_parts_settled_through(rc));
    wire_put_u32(payload + 16, rc->parameters_set ? rc->parameter_hash : 0);
    wire_put_u32(payload + 20, rc->nonce);
    payload[24] = rc->faults;
    payload[25] = (uint8_t)((rc_permitted(rc) ? 1 : 0) | (rc->parameters_set ? 2 : 0) |
                            (rc->parameters.inhibit ? 4 : 0) | (rc->gate_energised ? 8 : 0) |
                            (rc->encoder_known ? 16 : 0));
    payload[26] = pick_counter(rc);
    wire_put_u32(payload + 27, rc->counters[payload[26]]);
    rc->status_us = rc->now_us;
    rc->status_faults = rc->faults;
    rc->status_permit = rc_permitted(rc);
    rc_send(rc, RC_STATUS, 0, payload, sizeof payload);
}

static void put_outcome(uint8_t *at, const struct rc_outcome *outcome)
{
    wire_put_u32(at, outcome->part);
    at[4] = outcome->decision;
    at[5] = outcome->reason;
    wire_put_u32(at + 6, outcome->count);
}

void rc_send_outcome(struct reject_controller *rc, const struct rc_outcome *outcome)
{
    uint8_t payload[10];
    put_outcome(payload, outcome);
    rc_send(rc, RC_OUTCOME, 0, payload, sizeof payload);
}

static void send_outcomes(struct reject_controller *rc, uint16_t sequence, uint32_t from)
{
    uint8_t payload[WIRE_MAX_PAYLOAD];
    uint16_t length = 8;
    uint32_t oldest = rc->last_part < RC_MEMORY ? 1 : rc->last_part - RC_MEMORY + 1;
    uint32_t through = rc_parts_settled_through(rc);
    wire_put_u32(payload, oldest);
    wire_put_u32(payload + 4, through);
    if (from < oldest) {
        from = oldest;
    }
    while (from <= through && length + 10u <= sizeof payload) {
        const struct rc_outcome *outcome = &rc->memory[from % RC_MEMORY];
        if (outcome->part == from) {
            put_outcome(payload + length, outcome);
            length = (uint16_t)(length + 10);
        }
        from++;
    }
    rc_send(rc, RC_OUTCOMES, sequence, payload, length);
}

static void hello(struct reject_controller *rc, const struct wire_frame *frame)
{
    uint8_t payload[16];
    uint32_t nonce = wire_get_u32(frame->payload);
    if (!rc->session || nonce != rc->nonce) { /* another life of the box: it has to acknowledge */
        rc->session = true;
        rc->nonce = nonce;
        rc->command_known = false;
        rc->heartbeat_seen = false;
        rc_latch(rc, RC_FAULT_NEW_BOX);
    }
    if (frame->payload[4] & 1u) {
        rc_parts_flush(rc, RC_NOT_PERMITTED);
        rc->epoch = rc->io.draw_epoch(rc->io.user);
        rc_parts_clear(rc);
        rc_latch(rc, RC_FAULT_NEW_BOX);
    }
    wire_put_u32(payload, nonce);
    wire_put_u32(payload + 4, rc->last_part);
    wire_put_u32(payload + 8, rc->parameters_set ? rc->parameter_hash : 0);
    wire_put_u32(payload + 12, rc->now_us);
    rc_send(rc, RC_HELLO, frame->sequence, payload, sizeof payload);
}

static uint32_t *parameter_word(struct rc_parameters *p, int index)
{
    uint32_t *words[] = {&p->decision_distance, &p->gate_distance,     &p->window_before,
                         &p->window_after,      &p->debounce,          &p->min_spacing,
                         &p->actuator_delay_us, &p->heartbeat_timeout_ms, &p->encoder_timeout_ms};
    return words[index];
}

static bool parameters_sane(const struct rc_parameters *p)
{
    const uint32_t limit = 1u << 28;
    return p->version == 1 && p->energise_to_reject <= 1 && p->inhibit <= 1 && p->gate_distance < limit &&
           p->window_after < limit && p->window_before < p->gate_distance && p->decision_distance > p->debounce &&
           p->decision_distance <= p->gate_distance - p->window_before &&
           p->min_spacing >= p->window_before + p->window_after && p->min_spacing < limit &&
           p->actuator_delay_us <= 1000000u && p->heartbeat_timeout_ms >= 50 && p->heartbeat_timeout_ms <= 10000 &&
           p->encoder_timeout_ms >= 10 && p->encoder_timeout_ms <= 10000;
}

/* The hash is taken over what was understood, written out again, so that an echo proves the meaning. */
static uint32_t hash_parameters(struct rc_parameters *p)
{
    uint8_t bytes[RC_PARAMETER_BYTES] = {0};
    bytes[0] = p->version;
    bytes[1] = p->energise_to_reject;
    bytes[2] = p->inhibit;
    for (int i = 0; i < 9; i++) {
        wire_put_u32(bytes + 4 + 4 * i, *parameter_word(p, i));
    }
    return wire_crc32(bytes, sizeof bytes);
}

static void set_parameters(struct reject_controller *rc, const struct wire_frame *frame)
{
    struct rc_parameters p;
    uint8_t payload[5];
    p.version = frame->payload[0];
    p.energise_to_reject = frame->payload[1];
    p.inhibit = frame->payload[2];
    for (int i = 0; i < 9; i++) {
        *parameter_word(&p, i) = wire_get_u32(frame->payload + 4 + 4 * i);
    }
    payload[4] = parameters_sane(&p) ? RC_OK : RC_BAD_VALUE;
    if (payload[4] == RC_OK) {
        uint32_t hash = hash_parameters(&p);
        if (!rc->parameters_set || hash != rc->parameter_hash) {
            if (rc->parameters_set) {
                rc_latch(rc, RC_FAULT_PARAMETERS); /* settles what was followed by the old distances */
            }
            rc->parameters = p;
            rc->parameter_hash = hash;
            rc->parameters_set = true;
            rc->jogging = false;
            rc->eye_stable = rc->eye; /* a part that is under the eye now has no known leading edge */
            rc->eye_candidate = false;
            rc_gate_unproven(rc);
            rc_gate_update(rc);
        }
    }
    wire_put_u32(payload, rc->parameters_set ? rc->parameter_hash : 0);
    rc_send(rc, RC_PARAMETERS, frame->sequence, payload, sizeof payload);
}

static uint8_t jog(struct reject_controller *rc)
{
    if (!rc->parameters_set) {
        return RC_NO_PARAMETERS;
    }
    if (rc->length > 0 || rc->unproven || rc->eye_candidate) {
        return RC_PARTS_ON_BELT;
    }
    rc->jogging = true;
    rc->jog_us = rc->now_us;
    rc_gate_update(rc);
    return RC_OK;
}

static void command(struct reject_controller *rc, const struct wire_frame *frame)
{
    if (!rc->command_known || rc->command_sequence != frame->sequence) {
        rc->command_result = frame->type == RC_BOX_ACK ? rc_acknowledge(rc) : jog(rc);
        rc->command_sequence = frame->sequence;
        rc->command_known = true;
    }
    reply(rc, frame->sequence, rc->command_result);
}

static bool well_formed(const struct wire_frame *frame)
{
    switch (frame->type) {
    case RC_BOX_HELLO:
        return frame->length == 5;
    case RC_BOX_PARAMETERS:
        return frame->length == RC_PARAMETER_BYTES && frame->payload[3] == 0;
    case RC_BOX_DECISION:
        return frame->length == 6;
    case RC_BOX_FETCH:
        return frame->length == 4;
    case RC_BOX_HEARTBEAT:
    case RC_BOX_ACK:
    case RC_BOX_JOG:
        return frame->length == 0;
    default:
        return false;
    }
}

static void handle(struct reject_controller *rc, const struct wire_frame *frame)
{
    if (!well_formed(frame)) {
        rc->counters[RC_BAD_MESSAGES]++;
        return;
    }
    if (frame->type == RC_BOX_HELLO) {
        hello(rc, frame);
        return;
    }
    if (frame->epoch != rc->epoch || !rc->session) {
        rc->counters[RC_FOREIGN_EPOCH]++;
        return;
    }
    switch (frame->type) {
    case RC_BOX_PARAMETERS:
        set_parameters(rc, frame);
        break;
    case RC_BOX_HEARTBEAT:
        rc->heartbeat_seen = true;
        rc->heartbeat_us = rc->now_us;
        break;
    case RC_BOX_DECISION:
        reply(rc, frame->sequence,
              rc_parts_decide(rc, wire_get_u32(frame->payload), frame->payload[4], frame->payload[5]));
        break;
    case RC_BOX_FETCH:
        send_outcomes(rc, frame->sequence, wire_get_u32(frame->payload));
        break;
    default:
        command(rc, frame);
        break;
    }
}

void rc_receive(struct reject_controller *rc, const uint8_t *bytes, size_t length)
{
    struct wire_frame frame;
    for (size_t i = 0; i < length; i++) {
        switch (wire_feed(&rc->decoder, bytes[i], &frame)) {
        case WIRE_FRAME:
            handle(rc, &frame);
            break;
        case WIRE_BAD_CRC:
            rc->counters[RC_CRC_ERRORS]++;
            break;
        case WIRE_BAD_FRAME:
            rc->counters[RC_BAD_FRAMES]++;
            break;
        case WIRE_NOTHING:
            break;
        }
    }
}
