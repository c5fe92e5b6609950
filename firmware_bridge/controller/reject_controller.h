/* The reject controller: the part of the line that owns its timing. Pure logic, no OS, no allocation.
 *
 * It latches the encoder count at the photo-eye, numbers the part, tells the box, follows the part by counts in a
 * shift register, and lets it pass the gate only when an ACCEPT for exactly this part arrived before the decision
 * point. Everything else is thrown: silence, doubt, a late answer, a fault. What the register does not hold, because
 * it lay on the belt at the start, was flushed by a fault, touches the part before it or found the register full, is
 * "unproven": until it has passed the gate there is no jog, an output that energises to reject stays energised but for
 * accepted parts, and a part so close behind that the gate's window reaches over both is a FAULT.
 *
 * A port (board or host process) calls, at every wake-up and in this order: rc_wake, rc_receive for the serial bytes,
 * rc_encoder and rc_eye for the pins in the order in which they moved, rc_tick. Times are microseconds of one
 * monotonic u32 clock that may wrap. Counts are u32 and may wrap.
 *
 * The permit is a pulse train, not a level: it stops by itself when the loop that makes it stops.
 * The gate output is armed with the count at which hardware must release it by itself (an output-compare channel of
 * the encoder timer), so that a hung controller does not leave the gate open for the next part.
 */
#ifndef BELTLINE_REJECT_CONTROLLER_H
#define BELTLINE_REJECT_CONTROLLER_H

#include "wire.h"

#ifndef RC_REGISTER
#define RC_REGISTER 64u         /* parts between the eye and the gate */
#endif
#define RC_MEMORY 256u          /* outcomes remembered; a power of two */
#define RC_SPEED_COUNTS 64u     /* counts over which the speed is measured */
#define RC_SWING_COUNTS 2       /* a belt that went back so far does not run: its speed is worthless */
#define RC_REVERSE_LIMIT 32     /* counts a belt may swing back before it is a fault */
#define RC_PULSE_US 20000u      /* the permit toggles this often */
#define RC_STALL_US 100000u     /* a gap between wake-ups longer than this is a fault */
#define RC_LEAD_STEP 4          /* counts by which the lead may grow in one count */
#define RC_STATUS_US 100000u
#define RC_JOG_US 200000u
#define RC_BLIND_EDGES 3u       /* eye edges without one count ... */
#define RC_BLIND_US 20000u      /* ... over at least this time: the encoder is dead */
#define RC_PARAMETER_BYTES 40u
#define RC_COUNTERS 16u

enum rc_decision { RC_UNDECIDED = 0, RC_ACCEPT = 1, RC_REJECT = 2, RC_FAULT = 3 };

enum rc_reason { /* codes of the wire; the box has the words */
    RC_SCORE_BELOW_THRESHOLD = 1,
    RC_SCORE_ABOVE_THRESHOLD = 2,
    RC_LATE = 3,
    RC_NO_VERDICT = 4, /* 5 to 10 are the box's, or were */
    RC_HEARTBEAT_LOST = 11,
    RC_NOT_PERMITTED = 12,
    RC_OVERRUN = 13,
    RC_ENCODER = 14,
    RC_CONTROLLER_STALLED = 16,
    RC_REASONS = 17
};

enum rc_fault {
    RC_FAULT_POWER_UP = 1,
    RC_FAULT_HEARTBEAT = 2,
    RC_FAULT_ENCODER = 4,
    RC_FAULT_STALLED = 8,
    RC_FAULT_NEW_BOX = 16,
    RC_FAULT_PARAMETERS = 32
};

enum rc_message {
    RC_BOX_HELLO = 0x01,     /* u32 nonce, u8 flags: 1 = draw another epoch. The only one taken from any epoch */
    RC_BOX_PARAMETERS = 0x02, /* RC_PARAMETER_BYTES, see rc_parameters */
    RC_BOX_HEARTBEAT = 0x03, /* empty */
    RC_BOX_DECISION = 0x04,  /* u32 part, u8 decision, u8 reason */
    RC_BOX_ACK = 0x05,       /* empty: acknowledge the latched faults */
    RC_BOX_JOG = 0x06,       /* empty: cycle the gate once */
    RC_BOX_FETCH = 0x07,     /* u32 part: outcomes from this one on */
    RC_HELLO = 0x81,         /* u32 nonce, u32 last part, u32 parameter hash (0 = none), u32 now us */
    RC_PARAMETERS = 0x82,    /* u32 hash of the parameters in force, u8 result */
    RC_STATUS = 0x83,        /* see rc_send_status */
    RC_REPLY = 0x84,         /* u8 result; the sequence is that of the request */
    RC_TRIGGER = 0x85,       /* u32 part, u32 count, u32 deadline count, u32 latch us */
    RC_OUTCOME = 0x86,       /* u32 part, u8 decision, u8 reason, u32 count */
    RC_OUTCOMES = 0x87       /* u32 oldest remembered, u32 settled through, then records as in RC_OUTCOME */
};

enum rc_result {
    RC_OK = 0,
    RC_LATE_DECISION = 1,    /* past the decision point: counted, the part is thrown */
    RC_SETTLED = 2,          /* another decision or a fault came first */
    RC_UNKNOWN_PART = 3,
    RC_BAD_VALUE = 4,
    RC_NO_PARAMETERS = 5,
    RC_NO_HEARTBEAT = 6,
    RC_NO_ENCODER = 7,
    RC_PARTS_ON_BELT = 8
};

enum rc_counter { /* numbers of the counters in STATUS */
    RC_CRC_ERRORS,
    RC_BAD_FRAMES,
    RC_FOREIGN_EPOCH,
    RC_BAD_MESSAGES,
    RC_LATE_DECISIONS,
    RC_CONFLICTS,        /* a second, different decision for a part */
    RC_UNKNOWN_PARTS,
    RC_OVERRUNS,
    RC_TOO_CLOSE,
    RC_HEARTBEATS_LOST,
    RC_ENCODER_JUMPS,
    RC_ENCODER_REVERSALS,
    RC_ENCODER_LOSSES,
    RC_STALLS,
    RC_EYE_BOUNCES,
    RC_SEND_OVERFLOWS
};

struct rc_parameters { /* on the wire: three u8 and one zero byte, then u32 each, in this order */
    uint8_t energise_to_reject;
    uint8_t inhibit; /* dry run: the gate stays in its passing state */
    uint8_t version;
    uint32_t decision_distance; /* counts from the eye to the decision point */
    uint32_t gate_distance;     /* counts from the eye to the gate, for the leading edge */
    uint32_t window_before;     /* the gate is set this many counts ahead of the leading edge ... */
    uint32_t window_after;      /* ... and released this many after it (part length and margin) */
    uint32_t debounce;
    uint32_t min_spacing;
    uint32_t actuator_delay_us;
    uint32_t heartbeat_timeout_ms;
    uint32_t encoder_timeout_ms; /* silence of the encoder, with the gate set to pass, that sets it to reject */
};

struct rc_part {
    uint32_t part;
    uint32_t count;
    uint8_t decision;
    uint8_t reason;
    bool final; /* past the decision point, or settled by a fault */
};

struct rc_outcome {
    uint32_t part; /* 0 = empty */
    uint32_t count;
    uint8_t decision;
    uint8_t reason;
};

struct rc_io { /* what the core does to the world */
    void *user;
    bool (*send)(void *user, const uint8_t *bytes, size_t length); /* all of it or false */
    void (*gate)(void *user, bool energised, uint32_t release_count, bool hold); /* hold = no release by count */
    void (*permit)(void *user, bool level);
    void (*strobe)(void *user, uint32_t epoch, uint32_t part);
    uint32_t (*draw_epoch)(void *user);
};

struct reject_controller {
    struct rc_io io;
    struct wire_decoder decoder;
    uint32_t now_us;
    bool awake;

    uint32_t epoch; /* who we are, and with whom we talk */
    uint32_t nonce;
    bool session;
    bool command_known;
    uint16_t command_sequence; /* the last ACK or JOG, so that a retry does not act twice */
    uint8_t command_result;

    struct rc_parameters parameters;
    uint32_t parameter_hash;
    bool parameters_set;

    uint8_t faults;
    bool heartbeat_seen;
    uint32_t heartbeat_us;
    bool permit_level;
    uint32_t permit_us;
    uint32_t status_us;
    uint8_t status_faults;
    bool status_permit;

    bool encoder_known; /* encoder */
    uint32_t count;
    uint32_t peak;    /* furthest forward */
    uint32_t lead;    /* counts the belt travels in the actuator delay */
    uint32_t virtual_count; /* where the belt will be when the actuator has moved; back to
                             * `peak` when the speed is forgotten, else never back */
    uint32_t count_us;
    bool moved_since_permit;
    uint32_t ring[RC_SPEED_COUNTS];
    uint32_t ring_length;
    uint32_t ring_next;

    bool eye; /* photo-eye */
    bool eye_stable;
    bool eye_candidate;
    uint32_t eye_count;
    uint32_t eye_us;
    uint32_t blind_edges;
    uint32_t blind_us;
    bool eye_followed; /* what blocks the eye is the part that was latched last */

    struct rc_part parts[RC_REGISTER]; /* shift register, oldest at head */
    uint32_t head;
    uint32_t length;
    uint32_t last_part;
    bool last_trigger_known; /* its count belongs to the counts of now */
    uint32_t last_trigger_count;
    bool unproven; /* unfollowed parts may lie between eye and gate ... */
    uint32_t unproven_count; /* ... of which the last had passed the eye at this count */
    struct rc_outcome memory[RC_MEMORY];

    bool gate_energised;
    bool gate_hold;
    bool gate_blind; /* the encoder is silent: nobody knows what comes */
    uint32_t gate_release;
    bool jogging;
    uint32_t jog_us;

    uint32_t counters[RC_COUNTERS];
    uint32_t told[RC_COUNTERS]; /* what the box knows of them */
    uint8_t told_next;
};

void rc_init(struct reject_controller *rc, const struct rc_io *io, uint32_t epoch);
size_t rc_size(void);
void rc_wake(struct reject_controller *rc, uint32_t now_us);
void rc_receive(struct reject_controller *rc, const uint8_t *bytes, size_t length);
void rc_encoder(struct reject_controller *rc, uint32_t count, uint32_t at_us); /* one count at a time */
void rc_encoder_lost(struct reject_controller *rc); /* the next rc_encoder call gives a new base */
void rc_eye(struct reject_controller *rc, bool blocked, uint32_t at_us);
void rc_tick(struct reject_controller *rc);

#endif
