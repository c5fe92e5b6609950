#include "wire.h"

uint32_t wire_crc32(const uint8_t *bytes, size_t length)
{
    static const uint32_t nibble[16] = {
        0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u, 0x4DB26158u, 0x5005713Cu,
        0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu, 0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu};
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < length; i++) {
        crc ^= bytes[i];
        crc = (crc >> 4) ^ nibble[crc & 15u];
        crc = (crc >> 4) ^ nibble[crc & 15u];
    }
    return crc ^ 0xFFFFFFFFu;
}

void wire_put_u16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value & 0xFFu);
    at[1] = (uint8_t)(value >> 8);
}

void wire_put_u32(uint8_t *at, uint32_t value)
{
    wire_put_u16(at, (uint16_t)(value & 0xFFFFu));
    wire_put_u16(at + 2, (uint16_t)(value >> 16));
}

uint16_t wire_get_u16(const uint8_t *at)
{
    return (uint16_t)(at[0] | (at[1] << 8));
}

uint32_t wire_get_u32(const uint8_t *at)
{
    return (uint32_t)wire_get_u16(at) | ((uint32_t)wire_get_u16(at + 2) << 16);
}

/* Stuffs `length` (at most 254) bytes; returns length + 1. */
static size_t cobs_encode(const uint8_t *raw, size_t length, uint8_t *out)
{
    size_t code_at = 0;
    uint8_t code = 1;
    for (size_t i = 0; i < length; i++) {
        if (raw[i] != 0) {
            out[i + 1] = raw[i];
            code++;
        } else {
            out[code_at] = code;
            code_at = i + 1;
            code = 1;
        }
    }
    out[code_at] = code;
    return length + 1;
}

/* Unstuffs in place; returns the raw length, or -1 when a code points past the end. */
static int cobs_decode(uint8_t *bytes, size_t length)
{
    size_t in = 0;
    size_t out = 0;
    while (in < length) {
        size_t code = bytes[in];
        if (code == 0 || in + code > length) {
            return -1;
        }
        for (size_t i = 1; i < code; i++) {
            bytes[out++] = bytes[in + i];
        }
        in += code;
        if (in < length && code != 0xFFu) {
            bytes[out++] = 0;
        }
    }
    return (int)out;
}

size_t wire_encode(const struct wire_frame *frame, uint8_t out[WIRE_MAX_ENCODED])
{
    uint8_t raw[WIRE_MAX_RAW];
    size_t length = WIRE_HEADER + frame->length;
    if (frame->length > WIRE_MAX_PAYLOAD) {
        return 0;
    }
    raw[0] = WIRE_VERSION;
    raw[1] = frame->type;
    wire_put_u32(raw + 2, frame->epoch);
    wire_put_u16(raw + 6, frame->sequence);
    for (size_t i = 0; i < frame->length; i++) {
        raw[WIRE_HEADER + i] = frame->payload[i];
    }
    wire_put_u32(raw + length, wire_crc32(raw, length));
    length = cobs_encode(raw, length + 4, out);
    out[length] = 0;
    return length + 1;
}

void wire_decoder_init(struct wire_decoder *decoder)
{
    decoder->length = 0;
    decoder->overflow = false;
}

static enum wire_result open_frame(uint8_t *bytes, size_t stuffed, struct wire_frame *frame)
{
    int length = cobs_decode(bytes, stuffed);
    if (length < (int)(WIRE_HEADER + 4u)) {
        return WIRE_BAD_FRAME;
    }
    size_t body = (size_t)length - 4u;
    if (wire_get_u32(bytes + body) != wire_crc32(bytes, body)) {
        return WIRE_BAD_CRC;
    }
    if (bytes[0] != WIRE_VERSION || body - WIRE_HEADER > WIRE_MAX_PAYLOAD) {
        return WIRE_BAD_FRAME;
    }
    frame->type = bytes[1];
    frame->epoch = wire_get_u32(bytes + 2);
    frame->sequence = wire_get_u16(bytes + 6);
    frame->length = (uint16_t)(body - WIRE_HEADER);
    for (size_t i = 0; i < frame->length; i++) {
        frame->payload[i] = bytes[WIRE_HEADER + i];
    }
    return WIRE_FRAME;
}

enum wire_result wire_feed(struct wire_decoder *decoder, uint8_t byte, struct wire_frame *frame)
{
    if (byte != 0) {
        if (decoder->length < sizeof decoder->buffer) {
            decoder->buffer[decoder->length++] = byte;
        } else {
            decoder->overflow = true;
        }
        return WIRE_NOTHING;
    }
    size_t length = decoder->length;
    bool overflow = decoder->overflow;
    wire_decoder_init(decoder);
    if (overflow) {
        return WIRE_BAD_FRAME;
    }
    return length == 0 ? WIRE_NOTHING : open_frame(decoder->buffer, length, frame);
}
