/* Inputs, speed, faults and the permit. */
#include "rc_internal.h"

void rc_init(struct reject_controller *rc, const struct rc_io *io, uint32_t epoch)
{
    static const struct reject_controller blank;
    *rc = blank;
    rc->io = *io;
    rc->epoch = epoch;
    rc->parameters.heartbeat_timeout_ms = 300;
    rc->faults = RC_FAULT_POWER_UP;
    wire_decoder_init(&rc->decoder);
    rc_parts_clear(rc);
}

size_t rc_size(void)
{
    return sizeof(struct reject_controller);
}

bool rc_permitted(const struct reject_controller *rc)
{
    return rc->faults == 0 && rc->session && rc->parameters_set && rc->encoder_known;
}

static bool heartbeat_fresh(const struct reject_controller *rc)
{
    return rc->heartbeat_seen && rc->now_us - rc->heartbeat_us <= rc->parameters.heartbeat_timeout_ms * 1000u;
}

void rc_latch(struct reject_controller *rc, uint8_t fault)
{
    rc->faults = (uint8_t)(rc->faults | fault);
    switch (fault) {
    case RC_FAULT_ENCODER: /* places are unknown, that of a part just reaching the eye too */
        rc->eye_candidate = false;
        rc->eye_stable = rc->eye;
        rc_parts_flush(rc, RC_ENCODER);
        break;
    case RC_FAULT_STALLED: /* the outputs stood still meanwhile: nobody knows what passed */
        rc_parts_flush(rc, RC_CONTROLLER_STALLED);
        break;
    case RC_FAULT_PARAMETERS:
        rc_parts_flush(rc, RC_NOT_PERMITTED);
        break;
    default: /* the box is silent or another one: what it proved before stands */
        rc_parts_reject_undecided(rc, RC_HEARTBEAT_LOST);
        rc_gate_update(rc);
        break;
    }
}

uint8_t rc_acknowledge(struct reject_controller *rc)
{
    if (!rc->parameters_set) {
        return RC_NO_PARAMETERS;
    }
    if (!heartbeat_fresh(rc)) {
        return RC_NO_HEARTBEAT;
    }
    if (!rc->encoder_known) {
        return RC_NO_ENCODER;
    }
    if (rc->faults != 0) {
        rc->faults = 0;
        rc->moved_since_permit = false;
        rc->permit_us = rc->now_us - RC_PULSE_US;
    }
    return RC_OK;
}

void rc_wake(struct reject_controller *rc, uint32_t now_us)
{
    bool stalled = rc->awake && now_us - rc->now_us > RC_STALL_US;
    rc->awake = true;
    rc->now_us = now_us;
    if (stalled) {
        rc->counters[RC_STALLS]++;
        rc_latch(rc, RC_FAULT_STALLED);
    }
}

/* The belt did not go on: old counts say nothing of its speed, and the gate has moved for a place not yet reached. */
static void forget_speed(struct reject_controller *rc)
{
    rc->ring_length = 0;
    rc->lead = 0;
    rc->virtual_count = rc->peak;
}

static bool paused(const struct reject_controller *rc, uint32_t at_us, uint32_t pause_us)
{
    uint32_t last = rc->ring[(rc->ring_next + RC_SPEED_COUNTS - 1) % RC_SPEED_COUNTS];
    return rc->ring_length == 0 || rc_ahead(at_us, last) > (int32_t)pause_us;
}

static void measure_speed(struct reject_controller *rc, uint32_t at_us)
{
    uint32_t delay_us = rc->parameters.actuator_delay_us;
    if (paused(rc, at_us, delay_us < RC_STALL_US ? delay_us : RC_STALL_US)) { /* no count while the gate moved */
        forget_speed(rc);
    }
    rc->ring[rc->ring_next] = at_us;
    rc->ring_next = (rc->ring_next + 1) % RC_SPEED_COUNTS;
    if (rc->ring_length < RC_SPEED_COUNTS) {
        rc->ring_length++;
    }
    if (rc->ring_length > 1) {
        uint32_t oldest = rc->ring[(rc->ring_next + RC_SPEED_COUNTS - rc->ring_length) % RC_SPEED_COUNTS];
        uint32_t span_us = at_us - oldest;
        uint64_t counts = (uint64_t)rc->parameters.actuator_delay_us * (rc->ring_length - 1);
        uint64_t lead = span_us == 0 ? 0 : counts / span_us;
        rc->lead = lead < rc->parameters.gate_distance ? (uint32_t)lead : rc->parameters.gate_distance;
    }
}

static void restart_counting(struct reject_controller *rc, uint32_t count)
{
    rc->count = count;
    rc->peak = count;
    forget_speed(rc);
    rc->blind_edges = 0;
}

static void watch_eye(struct reject_controller *rc)
{
    if (!rc->eye_candidate || rc_ahead(rc->count, rc->eye_count) < (int32_t)rc->parameters.debounce) {
        return;
    }
    rc->eye_candidate = false;
    if (rc->eye == rc->eye_stable) {
        rc->counters[RC_EYE_BOUNCES]++;
        return;
    }
    rc->eye_stable = rc->eye;
    if (rc->eye_stable) {
        rc_parts_add(rc, rc->eye_count, rc->eye_us);
    }
}

/* One part blocks the eye for at most a part's length. What blocks it longer, or was never latched, passes on
 * unfollowed. */
static void watch_length(struct reject_controller *rc)
{
    if (!rc->eye || !rc->eye_stable) {
        return;
    }
    if (!rc->eye_followed) {
        rc_gate_unproven(rc);
    } else if (rc_ahead(rc->count, rc->last_trigger_count) > (int32_t)rc->parameters.window_after) {
        rc_parts_condemn_last(rc);
    }
}

void rc_encoder(struct reject_controller *rc, uint32_t count, uint32_t at_us)
{
    int32_t step = rc_ahead(count, rc->count);
    if (!rc->encoder_known) { /* what lies on the belt now was never seen */
        rc->encoder_known = true;
        restart_counting(rc, count);
        rc->count_us = at_us;
        rc->eye_stable = rc->eye;
        rc_gate_unproven(rc);
        rc_gate_update(rc);
        return;
    }
    if (step == 0) {
        return;
    }
    rc->blind_edges = 0;
    if (step != 1 && step != -1) {
        rc->counters[RC_ENCODER_JUMPS]++;
        restart_counting(rc, count);
        rc_latch(rc, RC_FAULT_ENCODER);
        return;
    }
    rc->count = count;
    rc->moved_since_permit = true;
    if (rc_ahead(count, rc->peak) <= 0) {
        rc->count_us = at_us;
        if (rc_ahead(rc->peak, count) == RC_SWING_COUNTS) {
            forget_speed(rc);
            rc_gate_update(rc);
        }
        if (rc_ahead(rc->peak, count) > RC_REVERSE_LIMIT) {
            rc->counters[RC_ENCODER_REVERSALS]++;
            restart_counting(rc, count);
            rc_latch(rc, RC_FAULT_ENCODER);
        }
        return;
    }
    rc->peak = count;
    measure_speed(rc, at_us);
    rc->count_us = at_us;
    int32_t gain = rc_ahead(count + rc->lead, rc->virtual_count);
    if (gain > 0) { /* two hasty counts are no speed */
        rc->virtual_count += gain > 1 + RC_LEAD_STEP ? 1u + RC_LEAD_STEP : (uint32_t)gain;
    }
    rc->gate_blind = false;
    if (rc->parameters_set) {
        watch_eye(rc);
        watch_length(rc);
        rc_parts_advance(rc);
        rc_gate_update(rc);
    }
}

void rc_encoder_lost(struct reject_controller *rc)
{
    rc->encoder_known = false;
    rc->counters[RC_ENCODER_LOSSES]++;
    rc_latch(rc, RC_FAULT_ENCODER);
}

void rc_eye(struct reject_controller *rc, bool blocked, uint32_t at_us)
{
    if (blocked == rc->eye) {
        return;
    }
    rc->eye = blocked;
    if (!rc->eye_candidate && blocked != rc->eye_stable && rc->encoder_known) {
        rc->eye_candidate = true;
        rc->eye_count = rc->count;
        rc->eye_us = at_us;
        if (rc->jogging) { /* the gate must be back before this part comes */
            rc->jogging = false;
            rc_gate_update(rc);
        }
    }
    if (rc->blind_edges++ == 0) {
        rc->blind_us = at_us;
    }
    if (rc->blind_edges < 2 || at_us - rc->blind_us < RC_BLIND_US) {
        return;
    }
    if (rc->blind_edges >= RC_BLIND_EDGES && rc_permitted(rc)) {
        rc->counters[RC_ENCODER_LOSSES]++;
        rc_latch(rc, RC_FAULT_ENCODER);
    } else { /* something went through the eye, and the belt did not: a hand, or a part laid down by it */
        rc_parts_foreign(rc);
        rc_gate_update(rc);
    }
}

static void drive_permit(struct reject_controller *rc)
{
    if (!rc_permitted(rc)) {
        if (rc->permit_level) {
            rc->permit_level = false;
            rc->io.permit(rc->io.user, false);
        }
    } else if (rc->now_us - rc->permit_us >= RC_PULSE_US) {
        rc->permit_us = rc->now_us;
        rc->permit_level = !rc->permit_level;
        rc->io.permit(rc->io.user, rc->permit_level);
    }
}

void rc_tick(struct reject_controller *rc)
{
    bool at_pass = rc->gate_energised != (rc->parameters.energise_to_reject != 0);
    if (rc->heartbeat_seen && !heartbeat_fresh(rc)) {
        rc->heartbeat_seen = false; /* the clock wraps: old must not become fresh again */
        if ((rc->faults & RC_FAULT_HEARTBEAT) == 0) {
            rc->counters[RC_HEARTBEATS_LOST]++;
            rc_latch(rc, RC_FAULT_HEARTBEAT);
        }
    }
    if (at_pass && !rc->parameters.inhibit && !rc->jogging && rc->moved_since_permit && rc_permitted(rc) &&
        rc_ahead(rc->now_us, rc->count_us) > (int32_t)(rc->parameters.encoder_timeout_ms * 1000u)) {
        rc_gate_encoder_silent(rc);
    }
    if (rc->ring_length > 0 && paused(rc, rc->now_us, RC_STALL_US)) {
        forget_speed(rc);
        rc_gate_update(rc);
    }
    if (rc->jogging && rc->now_us - rc->jog_us >= RC_JOG_US) {
        rc->jogging = false;
        rc_gate_update(rc);
    }
    drive_permit(rc);
    if (rc->now_us - rc->status_us >= RC_STATUS_US || rc->status_faults != rc->faults ||
        rc->status_permit != rc_permitted(rc)) {
        rc_send_status(rc);
    }
}
