/* The gate: open for a proven part's own window, closed for everything else.
 *
 * The command runs ahead of the belt by the actuator's delay: everything is judged at `virtual_count`, the place where
 * the belt will be when the actuator has moved. Where windows of a proven and an unproven part overlap, it rejects.
 */
#include "rc_internal.h"

#define RELEASE_SLACK 4 /* counts by which the hardware release lies behind the controller's own */

void rc_gate_unproven(struct reject_controller *rc)
{
    rc->unproven = true;
    rc->unproven_count = rc->peak;
    rc->eye_followed = false;
    rc->jogging = false;
}

static void command(struct reject_controller *rc, bool energised, uint32_t release, bool hold)
{
    bool rearm = energised && !hold && !rc->gate_hold &&
                 (rc_ahead(release, rc->gate_release) > RELEASE_SLACK ||
                  rc_ahead(rc->gate_release, release) > RELEASE_SLACK);
    if (energised == rc->gate_energised && hold == rc->gate_hold && !rearm) {
        return;
    }
    rc->gate_energised = energised;
    rc->gate_hold = hold;
    rc->gate_release = release;
    rc->io.gate(rc->io.user, energised, release, hold);
}

void rc_gate_update(struct reject_controller *rc)
{
    const struct rc_parameters *p = &rc->parameters;
    bool proven = false;
    bool blocked = false;
    uint32_t end = rc->virtual_count;
    if (!rc->parameters_set) {
        command(rc, false, rc->count, false);
        return;
    }
    uint32_t unproven_end = rc->unproven_count + p->gate_distance + p->window_after;
    if (rc->unproven && rc_ahead(rc->count, unproven_end) >= 0) {
        rc->unproven = false;
    }
    for (uint32_t i = 0; i < rc->length; i++) {
        const struct rc_part *part = &rc->parts[(rc->head + i) % RC_REGISTER];
        uint32_t at_gate = part->count + p->gate_distance;
        if (rc_ahead(rc->virtual_count, at_gate - p->window_before) < 0) {
            break;
        }
        if (rc_ahead(rc->virtual_count, at_gate + p->window_after) < 0) {
            end = at_gate + p->window_after;
            if (part->decision == RC_ACCEPT) {
                proven = true;
            } else {
                blocked = true;
            }
        }
    }
    uint32_t release = end - (rc->virtual_count - rc->peak) + RELEASE_SLACK;
    bool unseen = rc->gate_blind || (rc->unproven && rc_ahead(rc->virtual_count, unproven_end) < 0);
    if (rc->jogging && !proven && !blocked) {
        command(rc, true, rc->peak + p->gate_distance - p->window_before, false);
    } else if (p->inhibit) {
        command(rc, !p->energise_to_reject, release, true);
    } else if (!p->energise_to_reject) {
        command(rc, proven && !blocked, release, false);
    } else if (unseen) {
        command(rc, blocked || !proven, release, true);
    } else {
        command(rc, blocked, release, false);
    }
}

/* No count while the gate stands at pass and the belt should run: it must not stand open for what follows unseen. A
 * belt that merely paused costs the part in the gate. */
void rc_gate_encoder_silent(struct reject_controller *rc)
{
    const struct rc_parameters *p = &rc->parameters;
    for (uint32_t i = 0; i < rc->length; i++) {
        struct rc_part *part = &rc->parts[(rc->head + i) % RC_REGISTER];
        if (part->decision == RC_ACCEPT &&
            rc_ahead(rc->virtual_count, part->count + p->gate_distance - p->window_before) >= 0) {
            part->decision = RC_FAULT;
            part->reason = RC_ENCODER;
            part->final = true;
            rc->counters[RC_ENCODER_LOSSES]++;
        }
    }
    rc->gate_blind = true;
    rc_gate_update(rc);
}
