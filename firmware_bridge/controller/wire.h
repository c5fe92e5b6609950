/* The serial wire between the box and the reject controller.
 *
 * One frame, before stuffing, all integers little-endian:
 *
 *   u8 version | u8 type | u32 epoch | u16 sequence | payload (0..240 bytes) | u32 CRC-32/ISO-HDLC of all before
 *
 * then COBS, then one zero byte as delimiter. A raw frame has at most 252 bytes, so COBS always adds exactly one.
 * A decoder starts afresh at every zero: garbage before, in or after a frame costs that frame and no other. Bytes are
 * moved one by one, never by casting a struct, so the code is the same on every byte order and alignment.
 */
#ifndef BELTLINE_WIRE_H
#define BELTLINE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_VERSION 1u
#define WIRE_HEADER 8u
#define WIRE_MAX_PAYLOAD 240u
#define WIRE_MAX_RAW (WIRE_HEADER + WIRE_MAX_PAYLOAD + 4u)
#define WIRE_MAX_ENCODED (WIRE_MAX_RAW + 2u)

struct wire_frame {
    uint8_t type;
    uint32_t epoch;
    uint16_t sequence;
    uint16_t length;
    uint8_t payload[WIRE_MAX_PAYLOAD];
};

struct wire_decoder {
    uint8_t buffer[WIRE_MAX_RAW + 1u];
    uint16_t length;
    bool overflow;
};

enum wire_result {
    WIRE_NOTHING,  /* the frame is not complete */
    WIRE_FRAME,    /* `frame` holds a valid frame */
    WIRE_BAD_CRC,
    WIRE_BAD_FRAME /* too long, too short, not COBS, or another version */
};

uint32_t wire_crc32(const uint8_t *bytes, size_t length);

/* Returns the number of bytes written to `out`, delimiter included; 0 when the payload is too long. */
size_t wire_encode(const struct wire_frame *frame, uint8_t out[WIRE_MAX_ENCODED]);

void wire_decoder_init(struct wire_decoder *decoder);
enum wire_result wire_feed(struct wire_decoder *decoder, uint8_t byte, struct wire_frame *frame);

void wire_put_u16(uint8_t *at, uint16_t value);
void wire_put_u32(uint8_t *at, uint32_t value);
uint16_t wire_get_u16(const uint8_t *at);
uint32_t wire_get_u32(const uint8_t *at);

#endif
