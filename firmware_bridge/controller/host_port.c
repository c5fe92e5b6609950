/* The reject controller as a process: the same core as on the board, with a pseudo-terminal for its UART and a socket
 * for its pins.
 *
 *   host_port --link PATH --pins PATH [--baud N] [--epoch HEX]
 *
 * Serial: a pseudo-terminal in raw mode. This process keeps a slave descriptor open, so that a client coming and going
 * is no hang-up, and publishes the slave under the stable name PATH (a symbolic link, replaced atomically). Bytes are
 * paced to the baud rate both ways.
 *
 * Pins: a SOCK_SEQPACKET client of the belt, reconnecting. The belt sends, little-endian,
 *
 *   tick:   u32 sequence, u32 count, u64 us at which `count` was reached, u16 n, then n eye edges in order:
 *           u32 count, u64 us, u8 level
 *
 * and for each tick gets one answer with the output edges, each at its exact count:
 *
 *   answer: u32 sequence, u16 n, then n edges: u8 kind, u8 level, u32 count, u32 a, u32 b
 *           kind 1 gate    (a = release count, b = 1: hold, no release)
 *           kind 2 permit
 *           kind 3 strobe  (a = epoch, b = part)
 *
 * Every count between two ticks is stepped singly, as encoder interrupts would do, with its time interpolated, so the
 * outputs are exact in counts however the operating system schedules. When the socket closes, the outputs are gone:
 * the belt de-energises them, and is told the gate's state again when it is back. A belt that takes no answers while
 * more edges gather than one holds, or that sends what is no tick, is dropped, and the encoder with it. Order within a wake-up: serial bytes, pins, tick.
 *
 * It plays a microcontroller, so it asks for real-time priority, and goes on without where that is not permitted.
 */
#define _DEFAULT_SOURCE
#define _XOPEN_SOURCE 700

#include "reject_controller.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define TX_BYTES 4096u
#define MAX_TICK 4096u
#define MAX_EDGES 250u
#define EDGE_BYTES 14u
#define RETRY_US 20000u
#define MAX_CREDIT_US 10000u

struct host {
    struct reject_controller rc;
    int master, slave, pins;
    const char *link_path, *pins_path;
    uint32_t baud;
    uint64_t paced_us, connect_us;
    double rx_credit, tx_credit;
    uint8_t tx[TX_BYTES];
    size_t tx_length;
    uint8_t answer[6 + MAX_EDGES * EDGE_BYTES];
    uint16_t edges;
    bool pins_bad;
    uint32_t pins_count;
    uint64_t pins_us;
    bool pins_known;
};

static volatile sig_atomic_t stop_requested;

static void request_stop(int signal_number)
{
    (void)signal_number;
    stop_requested = 1;
}

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void fail(const char *what)
{
    fprintf(stderr, "host_port: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* --- what the core does to the world --- */

static bool io_send(void *user, const uint8_t *bytes, size_t length)
{
    struct host *host = user;
    if (host->tx_length + length > TX_BYTES) {
        return false;
    }
    memcpy(host->tx + host->tx_length, bytes, length);
    host->tx_length += length;
    return true;
}

static void add_edge(struct host *host, uint8_t kind, bool level, uint32_t a, uint32_t b)
{
    if (host->pins < 0) {
        return;
    }
    if (host->edges == MAX_EDGES) {
        host->pins_bad = true;
        return;
    }
    uint8_t *at = host->answer + 6 + host->edges++ * EDGE_BYTES;
    at[0] = kind;
    at[1] = level;
    wire_put_u32(at + 2, host->rc.count);
    wire_put_u32(at + 6, a);
    wire_put_u32(at + 10, b);
}

static void io_gate(void *user, bool energised, uint32_t release, bool hold)
{
    add_edge(user, 1, energised, release, hold);
}

static void io_permit(void *user, bool level)
{
    add_edge(user, 2, level, 0, 0);
}

static void io_strobe(void *user, uint32_t epoch, uint32_t part)
{
    add_edge(user, 3, true, epoch, part);
}

static uint32_t io_draw_epoch(void *user)
{
    uint8_t bytes[4];
    int fd = open("/dev/urandom", O_RDONLY);
    (void)user;
    if (fd < 0 || read(fd, bytes, sizeof bytes) != (ssize_t)sizeof bytes) {
        fail("/dev/urandom");
    }
    close(fd);
    return wire_get_u32(bytes);
}

/* --- serial --- */

static void open_terminal(struct host *host)
{
    char temporary[4096];
    struct termios raw;
    host->master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (host->master < 0 || grantpt(host->master) != 0 || unlockpt(host->master) != 0) {
        fail("pseudo-terminal");
    }
    const char *name = ptsname(host->master);
    host->slave = name == NULL ? -1 : open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (host->slave < 0 || tcgetattr(host->slave, &raw) != 0) {
        fail("pseudo-terminal slave");
    }
    cfmakeraw(&raw);
    if (tcsetattr(host->slave, TCSANOW, &raw) != 0) {
        fail("raw mode");
    }
    snprintf(temporary, sizeof temporary, "%s.%ld", host->link_path, (long)getpid());
    unlink(temporary);
    if (symlink(name, temporary) != 0 || rename(temporary, host->link_path) != 0) {
        fail(host->link_path);
    }
}

/* Another instance may have taken the name over meanwhile. */
static void withdraw_link(const struct host *host)
{
    char target[256];
    const char *name = ptsname(host->master);
    ssize_t length = readlink(host->link_path, target, sizeof target - 1);
    if (length > 0 && name != NULL) {
        target[length] = '\0';
        if (strcmp(target, name) == 0) {
            unlink(host->link_path);
        }
    }
}

static void earn_credit(struct host *host, uint64_t now)
{
    double bytes_per_us = host->baud / 10.0 / 1e6; /* 8N1: ten bits a byte */
    double most = bytes_per_us * MAX_CREDIT_US < 2 ? 2 : bytes_per_us * MAX_CREDIT_US;
    double earned = (double)(now - host->paced_us) * bytes_per_us;
    host->paced_us = now;
    host->rx_credit = host->rx_credit + earned > most ? most : host->rx_credit + earned;
    host->tx_credit = host->tx_credit + earned > most ? most : host->tx_credit + earned;
}

static void receive_serial(struct host *host)
{
    uint8_t bytes[512];
    size_t allowed = host->rx_credit < (double)sizeof bytes ? (size_t)host->rx_credit : sizeof bytes;
    if (allowed == 0) {
        return;
    }
    ssize_t length = read(host->master, bytes, allowed);
    if (length > 0) {
        host->rx_credit -= (double)length;
        rc_receive(&host->rc, bytes, (size_t)length);
    } else {
        host->rx_credit = 1; /* an idle line saves nothing up: the next frame takes its full time */
    }
}

/* Sends what was queued before this wake-up, so that time earned while the line was idle never speeds a frame up. */
static void send_serial(struct host *host)
{
    size_t allowed = host->tx_credit < (double)host->tx_length ? (size_t)host->tx_credit : host->tx_length;
    ssize_t length = allowed == 0 ? 0 : write(host->master, host->tx, allowed);
    if (length > 0) {
        host->tx_credit -= (double)length;
        host->tx_length -= (size_t)length;
        memmove(host->tx, host->tx + length, host->tx_length);
    }
    if (host->tx_length == 0) {
        host->tx_credit = 0;
    }
}

/* --- pins --- */

static void drop_pins(struct host *host)
{
    if (host->pins_bad) {
        fprintf(stderr, "host_port: %s: pins dropped: no tick, or more edges than one answer holds\n", host->pins_path);
    }
    close(host->pins);
    host->pins = -1;
    host->pins_known = false;
    host->pins_bad = false;
    host->edges = 0;
    rc_encoder_lost(&host->rc);
}

static void connect_pins(struct host *host, uint64_t now)
{
    struct sockaddr_un address;
    if (now - host->connect_us < RETRY_US) {
        return;
    }
    host->connect_us = now;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    if (strlen(host->pins_path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        fail(host->pins_path);
    }
    strcpy(address.sun_path, host->pins_path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        fail("socket");
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        close(fd);
        return;
    }
    host->pins = fd;
}

static uint64_t get_u64(const uint8_t *at)
{
    return (uint64_t)wire_get_u32(at) | ((uint64_t)wire_get_u32(at + 4) << 32);
}

/* Steps the encoder to `count`, spreading the time evenly. */
static void step_encoder(struct host *host, uint32_t count, uint64_t at_us)
{
    uint32_t distance = count - host->pins_count;
    bool forward = distance <= 0x7FFFFFFFu;
    uint32_t steps = forward ? distance : 0u - distance;
    uint64_t span = at_us - host->pins_us;
    for (uint32_t i = 1; i <= steps; i++) {
        uint32_t at = forward ? host->pins_count + i : host->pins_count - i;
        rc_encoder(&host->rc, at, (uint32_t)(host->pins_us + span * i / steps));
    }
    if (steps > 0) {
        host->pins_count = count;
        host->pins_us = at_us;
    }
}

static void handle_tick(struct host *host, const uint8_t *tick, size_t length)
{
    uint16_t edges = length < 18 ? 0 : wire_get_u16(tick + 16);
    if (length < 18 || length != 18 + 13u * edges) {
        host->pins_bad = true;
        return;
    }
    if (!host->pins_known) { /* the eye's level first: a part that lies under it has no known leading edge */
        uint32_t count = wire_get_u32(tick + 4);
        host->pins_known = true;
        host->pins_count = count;
        host->pins_us = get_u64(tick + 8);
        if (edges > 0) {
            rc_eye(&host->rc, tick[18 + 13u * (edges - 1u) + 12] != 0, (uint32_t)host->pins_us);
        }
        io_gate(host, host->rc.gate_energised, host->rc.gate_release, host->rc.gate_hold);
        rc_encoder(&host->rc, count, (uint32_t)host->pins_us);
    } else {
        for (uint16_t i = 0; i < edges; i++) {
            const uint8_t *edge = tick + 18 + 13u * i;
            step_encoder(host, wire_get_u32(edge), get_u64(edge + 4));
            rc_eye(&host->rc, edge[12] != 0, (uint32_t)get_u64(edge + 4));
        }
        step_encoder(host, wire_get_u32(tick + 4), get_u64(tick + 8));
    }
}

static void send_answer(struct host *host, uint32_t sequence)
{
    wire_put_u32(host->answer, sequence);
    wire_put_u16(host->answer + 4, host->edges);
    /* A full socket means that the belt hangs; what it misses it sees as missing pulses. */
    (void)!send(host->pins, host->answer, 6 + host->edges * EDGE_BYTES, MSG_NOSIGNAL | MSG_DONTWAIT);
    host->edges = 0;
}

static void receive_pins(struct host *host)
{
    uint8_t tick[MAX_TICK];
    while (host->pins >= 0) {
        ssize_t length = recv(host->pins, tick, sizeof tick, MSG_DONTWAIT);
        if (length < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
            return;
        }
        if (length <= 0) {
            drop_pins(host);
            return;
        }
        handle_tick(host, tick, (size_t)length);
        rc_tick(&host->rc);
        if (host->pins_bad) {
            drop_pins(host);
            return;
        }
        send_answer(host, wire_get_u32(tick));
    }
}

static void wake_up(struct host *host)
{
    struct pollfd wait[2] = {{0, 0, 0}, {0, 0, 0}};
    bool throttled = host->tx_length > 0 || host->rx_credit < 1;
    wait[0].fd = host->master;
    wait[0].events = host->rx_credit < 1 ? 0 : POLLIN;
    wait[1].fd = host->pins;
    wait[1].events = POLLIN;
    poll(wait, 2, throttled ? 1 : 5);
    uint64_t now = now_us();
    earn_credit(host, now);
    send_serial(host);
    rc_wake(&host->rc, (uint32_t)now);
    receive_serial(host);
    if (host->pins < 0) {
        connect_pins(host, now);
    }
    receive_pins(host);
    rc_tick(&host->rc);
    if (host->pins_bad) {
        drop_pins(host);
    }
}

static bool parse_number(const char *text, int base, uint32_t *number)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, base);
    *number = (uint32_t)value;
    return errno == 0 && end != text && *end == '\0' && value <= 0xFFFFFFFFu;
}

int main(int argc, char **argv)
{
    static struct host host;
    uint32_t epoch = 0;
    bool epoch_given = false;
    bool understood = argc % 2 == 1;
    host.pins = -1;
    host.baud = 115200;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--link") == 0) {
            host.link_path = argv[i + 1];
        } else if (strcmp(argv[i], "--pins") == 0) {
            host.pins_path = argv[i + 1];
        } else if (strcmp(argv[i], "--baud") == 0) {
            understood = understood && parse_number(argv[i + 1], 10, &host.baud);
        } else if (strcmp(argv[i], "--epoch") == 0) {
            understood = understood && parse_number(argv[i + 1], 16, &epoch);
            epoch_given = true;
        } else {
            understood = false;
        }
    }
    if (!understood || host.link_path == NULL || host.pins_path == NULL || host.baud == 0) {
        fprintf(stderr, "usage: host_port --link PATH --pins PATH [--baud N] [--epoch HEX]\n");
        return 2;
    }
    struct sched_param priority;
    memset(&priority, 0, sizeof priority);
    priority.sched_priority = 1;
    (void)sched_setscheduler(0, SCHED_FIFO, &priority);
    struct rc_io io = {&host, io_send, io_gate, io_permit, io_strobe, io_draw_epoch};
    signal(SIGTERM, request_stop);
    signal(SIGINT, request_stop);
    signal(SIGPIPE, SIG_IGN);
    open_terminal(&host);
    rc_init(&host.rc, &io, epoch_given ? epoch : io_draw_epoch(NULL));
    host.paced_us = now_us();
    while (!stop_requested) {
        wake_up(&host);
    }
    withdraw_link(&host);
    return 0;
}
