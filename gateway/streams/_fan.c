/* The compiled inner loops. Of the fan-out: RTP header, SRTP and one sendmsg with UDP_SEGMENT for each viewer.

   It does exactly what srtp.GcmSender/CmSender and carrier.UdpSocket do in Python, byte for byte, and nothing they
   don't: whatever does not go smoothly (no UDP path, a full queue, a kernel that refuses GSO, any error) is handed
   back, and Python goes through the same group by its own path. Sealing a packet again gives the same bytes, so no
   nonce is ever used for two packets.

   Gate: one UDP socket and whether it may be used now.  Lane: one link, its session keys and where it sends to.
   Outgoing: the numbers of one viewer's RTP stream, what sender.TrackSender is made of.  fan(): every group to every
   sender.  And of what comes before: whole_picture() takes a picture out of a receive buffer as h264.Depacketizer does,
   fragment() cuts one up as packets.packetize_h264 does; both leave everything unusual to Python.

   One thread at a time: the buffer is shared, and the GIL is let go only around sendmsg, when none but the event
   loop's thread calls in here. Sources: RFC 3711 section 4.1.1 and 4.2.1, RFC 7714 section 8, RFC 2104,
   RFC 2326 section 10.12, RFC 6184 section 5.8. */

#define PY_SSIZE_T_CLEAN
#define OPENSSL_SUPPRESS_DEPRECATED /* SHA1_*: an HMAC state that is copied with memcpy; EVP's copy allocates */
#include <Python.h>
#include <structmember.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#ifndef SOL_UDP
#define SOL_UDP 17
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum {
    HEADER_SIZE = 12,
    KEY_SIZE = 16,
    GCM_SALT_SIZE = 12,
    GCM_TAG_SIZE = 16,
    CM_SALT_SIZE = 14,
    CM_TAG_SIZE = 10,
    AUTH_KEY_SIZE = 20,
    MAX_GROUP_SIZE = 65536, /* as srtp.MAX_GROUP_SIZE */
    MAX_SEGMENTS = 64,      /* what the kernel takes in one UDP_SEGMENT send */
};

static uint8_t buffer[MAX_GROUP_SIZE];

/* --- Gate: a UDP socket ------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    int fd;
    char open;
} Gate;

static int gate_init(Gate *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i", names, &self->fd)) return -1;
    self->open = 1;
    return 0;
}

static PyMemberDef gate_members[] = {
    {"open", T_BOOL, offsetof(Gate, open), 0, "False: nothing is sent by it, everything is handed back."},
    {NULL},
};

static PyTypeObject GateType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gateway.streams._fan.Gate",
    .tp_doc = "One UDP socket by its file descriptor. The owner sets `open` to False before it closes it.",
    .tp_basicsize = sizeof(Gate),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)gate_init,
    .tp_members = gate_members,
};

/* --- Lane: a link's keys and address ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    EVP_CIPHER_CTX *cipher;
    int gcm;
    uint8_t salt[CM_SALT_SIZE];
    SHA_CTX inner, outer; /* HMAC with the key absorbed */
    Gate *gate;
    struct sockaddr_storage address;
    socklen_t address_size;
} Lane;

typedef struct {
    uint64_t index;
    uint32_t timestamp, ssrc;
    uint8_t payload_type;
    int marker;
} Numbers;

static void put16(uint8_t *at, uint16_t value) {
    at[0] = value >> 8;
    at[1] = value & 0xFF;
}

static void put32(uint8_t *at, uint32_t value) {
    put16(at, value >> 16);
    put16(at + 2, value & 0xFFFF);
}

static void put48(uint8_t *at, uint64_t value) {
    put16(at, value >> 32);
    put32(at + 2, (uint32_t)value);
}

static int tag_size(const Lane *lane) { return lane->gcm ? GCM_TAG_SIZE : CM_TAG_SIZE; }

/* One packet to `at`, whose header is there already. Returns 0 when OpenSSL refuses. */
static int seal_gcm(Lane *lane, uint8_t *at, const uint8_t *payload, int size, const Numbers *numbers) {
    uint8_t nonce[12] = {0};
    int written;
    put32(nonce + 2, numbers->ssrc);
    put48(nonce + 6, numbers->index);
    for (int i = 0; i < 12; i++) nonce[i] ^= lane->salt[i];
    return EVP_EncryptInit_ex(lane->cipher, NULL, NULL, NULL, nonce) == 1 &&
           EVP_EncryptUpdate(lane->cipher, NULL, &written, at, HEADER_SIZE) == 1 &&
           EVP_EncryptUpdate(lane->cipher, at + HEADER_SIZE, &written, payload, size) == 1 &&
           EVP_EncryptFinal_ex(lane->cipher, at + HEADER_SIZE + size, &written) == 1 &&
           EVP_CIPHER_CTX_ctrl(lane->cipher, EVP_CTRL_AEAD_GET_TAG, GCM_TAG_SIZE, at + HEADER_SIZE + size) == 1;
}

static int seal_cm(Lane *lane, uint8_t *at, const uint8_t *payload, int size, const Numbers *numbers) {
    uint8_t counter[16] = {0}, roll_over[4], digest[SHA_DIGEST_LENGTH];
    int written;
    put32(counter + 4, numbers->ssrc);
    put48(counter + 8, numbers->index);
    for (int i = 0; i < CM_SALT_SIZE; i++) counter[i] ^= lane->salt[i];
    if (EVP_EncryptInit_ex(lane->cipher, NULL, NULL, NULL, counter) != 1 ||
        EVP_EncryptUpdate(lane->cipher, at + HEADER_SIZE, &written, payload, size) != 1)
        return 0;
    put32(roll_over, (uint32_t)(numbers->index >> 16));
    SHA_CTX hash = lane->inner;
    SHA1_Update(&hash, at, HEADER_SIZE + size);
    SHA1_Update(&hash, roll_over, sizeof roll_over);
    SHA1_Final(digest, &hash);
    hash = lane->outer;
    SHA1_Update(&hash, digest, sizeof digest);
    SHA1_Final(digest, &hash);
    memcpy(at + HEADER_SIZE + size, digest, CM_TAG_SIZE);
    return 1;
}

/* A group into `buffer`. payloads: a tuple of bytes. Returns the octets written, -1 with an exception set. */
static Py_ssize_t seal_group(Lane *lane, PyObject *payloads, Numbers numbers) {
    Py_ssize_t count = PyTuple_GET_SIZE(payloads), used = 0;
    int tag = tag_size(lane);
    for (Py_ssize_t i = 0; i < count; i++, numbers.index++) {
        PyObject *payload = PyTuple_GET_ITEM(payloads, i);
        if (!PyBytes_Check(payload)) {
            PyErr_SetString(PyExc_TypeError, "a payload must be bytes");
            return -1;
        }
        Py_ssize_t size = PyBytes_GET_SIZE(payload);
        if (size > MAX_GROUP_SIZE || used + HEADER_SIZE + size + tag > MAX_GROUP_SIZE) {
            PyErr_SetString(PyExc_ValueError, "a group must fit into 64 KiB");
            return -1;
        }
        uint8_t *at = buffer + used;
        at[0] = 0x80;
        at[1] = numbers.payload_type | (numbers.marker && i == count - 1 ? 0x80 : 0);
        put16(at + 2, numbers.index & 0xFFFF);
        put32(at + 4, numbers.timestamp);
        put32(at + 8, numbers.ssrc);
        const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(payload);
        if (!(lane->gcm ? seal_gcm : seal_cm)(lane, at, data, (int)size, &numbers)) {
            PyErr_SetString(PyExc_RuntimeError, "OpenSSL refused to seal a packet");
            return -1;
        }
        used += HEADER_SIZE + size + tag;
    }
    return used;
}

static int lane_init(Lane *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"key", "salt", "auth_key", NULL};
    const char *key, *salt, *auth_key;
    Py_ssize_t key_size, salt_size, auth_key_size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y#y#y#", names, &key, &key_size, &salt, &salt_size, &auth_key,
                                     &auth_key_size))
        return -1;
    self->gcm = auth_key_size == 0;
    if (key_size != KEY_SIZE || salt_size != (self->gcm ? GCM_SALT_SIZE : CM_SALT_SIZE) ||
        (auth_key_size && auth_key_size != AUTH_KEY_SIZE)) {
        PyErr_SetString(PyExc_ValueError, "not the keys of AEAD_AES_128_GCM or AES_CM_128_HMAC_SHA1_80");
        return -1;
    }
    memcpy(self->salt, salt, salt_size);
    EVP_CIPHER_CTX_free(self->cipher);
    self->cipher = EVP_CIPHER_CTX_new();
    const EVP_CIPHER *cipher = self->gcm ? EVP_aes_128_gcm() : EVP_aes_128_ctr();
    if (!self->cipher || EVP_EncryptInit_ex(self->cipher, cipher, NULL, (const uint8_t *)key, NULL) != 1) {
        PyErr_SetString(PyExc_RuntimeError, "OpenSSL has no such cipher");
        return -1;
    }
    if (!self->gcm) {
        uint8_t inner[SHA_CBLOCK], outer[SHA_CBLOCK];
        memset(inner, 0x36, sizeof inner);
        memset(outer, 0x5C, sizeof outer);
        for (int i = 0; i < AUTH_KEY_SIZE; i++) {
            inner[i] ^= (uint8_t)auth_key[i];
            outer[i] ^= (uint8_t)auth_key[i];
        }
        SHA1_Init(&self->inner);
        SHA1_Update(&self->inner, inner, sizeof inner);
        SHA1_Init(&self->outer);
        SHA1_Update(&self->outer, outer, sizeof outer);
        OPENSSL_cleanse(inner, sizeof inner);
        OPENSSL_cleanse(outer, sizeof outer);
    }
    return 0;
}

static void lane_dealloc(Lane *self) {
    EVP_CIPHER_CTX_free(self->cipher);
    OPENSSL_cleanse(&self->inner, sizeof self->inner);
    OPENSSL_cleanse(&self->outer, sizeof self->outer);
    Py_XDECREF(self->gate);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int ready(Lane *lane) {
    if (lane->cipher) return 1;
    PyErr_SetString(PyExc_RuntimeError, "a lane without keys");
    return 0;
}

static PyObject *lane_seal(Lane *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"payloads", "first_index", "timestamp", "ssrc", "payload_type", "marker", NULL};
    PyObject *given;
    unsigned long long index;
    unsigned int timestamp, ssrc;
    unsigned char payload_type;
    int marker;
    if (!ready(self) || !PyArg_ParseTupleAndKeywords(args, kwargs, "OKIIbp", names, &given, &index, &timestamp, &ssrc,
                                                     &payload_type, &marker))
        return NULL;
    PyObject *payloads = PySequence_Tuple(given);
    if (!payloads) return NULL;
    Numbers numbers = {index, timestamp, ssrc, payload_type & 0x7F, marker};
    Py_ssize_t used = seal_group(self, payloads, numbers);
    Py_DECREF(payloads);
    return used < 0 ? NULL : PyBytes_FromStringAndSize((const char *)buffer, used);
}

static PyObject *lane_aim(Lane *self, PyObject *args) {
    Gate *gate;
    const char *host;
    int port, scope = 0;
    if (!PyArg_ParseTuple(args, "O!si|i", &GateType, &gate, &host, &port, &scope)) return NULL;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_scope_id = scope};
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
        memcpy(&self->address, &v4, self->address_size = sizeof v4);
    } else if (inet_pton(AF_INET6, host, &v6.sin6_addr) == 1) {
        memcpy(&self->address, &v6, self->address_size = sizeof v6);
    } else {
        PyErr_SetString(PyExc_ValueError, "not an IP address");
        return NULL;
    }
    Py_INCREF(gate);
    Py_XSETREF(self->gate, gate);
    Py_RETURN_NONE;
}

static PyObject *lane_rest(Lane *self, PyObject *Py_UNUSED(ignored)) {
    Py_CLEAR(self->gate);
    Py_RETURN_NONE;
}

static PyMethodDef lane_methods[] = {
    {"seal_group", (PyCFunction)(void (*)(void))lane_seal, METH_VARARGS | METH_KEYWORDS,
     "The datagrams of a group, sealed and laid end to end."},
    {"aim", (PyCFunction)lane_aim, METH_VARARGS, "aim(gate, host, port, scope=0): where fan() sends from now on."},
    {"rest", (PyCFunction)lane_rest, METH_NOARGS, "No UDP path: fan() hands everything back."},
    {NULL},
};

static PyTypeObject LaneType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gateway.streams._fan.Lane",
    .tp_doc = "Lane(key, salt, auth_key): the RTP session keys of one link; auth_key is empty for GCM.",
    .tp_basicsize = sizeof(Lane),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)lane_init,
    .tp_dealloc = (destructor)lane_dealloc,
    .tp_methods = lane_methods,
};

/* --- Outgoing: a viewer's RTP stream ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *lane;
    long long index_offset, timestamp_offset, ssrc, payload_type, cursor, packets, octets;
} Outgoing;

static void outgoing_dealloc(Outgoing *self) {
    Py_CLEAR(self->lane);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMemberDef outgoing_members[] = {
    {"lane", T_OBJECT, offsetof(Outgoing, lane), 0, "The Lane it goes out by; None: by Python."},
    {"index_offset", T_LONGLONG, offsetof(Outgoing, index_offset), 0, "SRTP index less packet number."},
    {"timestamp_offset", T_LONGLONG, offsetof(Outgoing, timestamp_offset), 0, "RTP timestamp less the source's."},
    {"ssrc", T_LONGLONG, offsetof(Outgoing, ssrc), 0, NULL},
    {"payload_type", T_LONGLONG, offsetof(Outgoing, payload_type), 0, NULL},
    {"cursor", T_LONGLONG, offsetof(Outgoing, cursor), 0, "Number of the packet that comes next."},
    {"packets", T_LONGLONG, offsetof(Outgoing, packets), 0, "Sent so far."},
    {"octets", T_LONGLONG, offsetof(Outgoing, octets), 0, "Payload bytes sent so far."},
    {NULL},
};

static PyTypeObject OutgoingType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gateway.streams._fan.Outgoing",
    .tp_doc = "The numbers of one viewer's RTP stream, side by side in memory, for fan().",
    .tp_basicsize = sizeof(Outgoing),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)outgoing_dealloc,
    .tp_members = outgoing_members,
};

/* --- fan() ----------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject *payloads; /* borrowed from the group */
    long long first, timestamp, octets;
    int marker;
} Shot;

/* 1: the kernel has it. */
static int send_group(Lane *lane, Py_ssize_t size, Py_ssize_t count, uint16_t segment_size) {
    union {
        char space[CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr align;
    } control = {{0}};
    struct iovec vector = {buffer, (size_t)size};
    struct msghdr message = {
        .msg_name = &lane->address, .msg_namelen = lane->address_size, .msg_iov = &vector, .msg_iovlen = 1};
    if (count > 1) {
        message.msg_control = control.space;
        message.msg_controllen = sizeof control.space;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_UDP;
        header->cmsg_type = UDP_SEGMENT;
        header->cmsg_len = CMSG_LEN(sizeof segment_size);
        memcpy(CMSG_DATA(header), &segment_size, sizeof segment_size);
    }
    ssize_t sent;
    int fd = lane->gate->fd;
    Py_BEGIN_ALLOW_THREADS
    sent = sendmsg(fd, &message, MSG_DONTWAIT);
    Py_END_ALLOW_THREADS
    return sent == size;
}

/* Sends from the first shot on. Returns how many of them the kernel has, -1 with an exception set. */
static Py_ssize_t serve(Outgoing *sender, const Shot *shots, Py_ssize_t count, long long end) {
    if (!sender->lane || !PyObject_TypeCheck(sender->lane, &LaneType)) return 0;
    Lane *lane = (Lane *)sender->lane;
    if (!ready(lane)) return -1;
    if (!lane->gate || !lane->gate->open) return 0;
    Py_INCREF(lane);
    Py_ssize_t done = 0;
    for (; done < count; done++) {
        const Shot *shot = &shots[done];
        Py_ssize_t segments = PyTuple_GET_SIZE(shot->payloads);
        Numbers numbers = {(uint64_t)(shot->first + sender->index_offset),
                           (uint32_t)(shot->timestamp + sender->timestamp_offset), (uint32_t)sender->ssrc,
                           sender->payload_type & 0x7F, shot->marker};
        Py_ssize_t size = seal_group(lane, shot->payloads, numbers);
        if (size < 0) {
            Py_DECREF(lane);
            return -1;
        }
        Py_ssize_t segment = PyBytes_GET_SIZE(PyTuple_GET_ITEM(shot->payloads, 0)) + HEADER_SIZE + tag_size(lane);
        if (!send_group(lane, size, segments, (uint16_t)segment)) break;
        sender->packets += segments;
        sender->octets += shot->octets;
    }
    sender->cursor = end;
    Py_DECREF(lane);
    return done;
}

/* Hundreds of viewers fall out of the cache between two pictures: have the next ones fetched while one is served. */
static void fetch_ahead(PyObject *senders, Py_ssize_t position) {
    if (position + 2 < PyTuple_GET_SIZE(senders)) {
        const char *next = (const char *)PyTuple_GET_ITEM(senders, position + 2);
        __builtin_prefetch(next);
        __builtin_prefetch(next + 64);
    }
    if (position + 1 < PyTuple_GET_SIZE(senders)) {
        const Outgoing *next = (const Outgoing *)PyTuple_GET_ITEM(senders, position + 1);
        if (PyObject_TypeCheck((PyObject *)next, &OutgoingType) && next->lane) {
            __builtin_prefetch(next->lane, 1);
            __builtin_prefetch((const char *)next->lane + 64);
            __builtin_prefetch((const char *)next->lane + 128);
        }
    }
}

static int read_shot(PyObject *given, Shot *shot) {
    PyObject *keyframe, *picture;
    if (!PyTuple_Check(given) ||
        !PyArg_ParseTuple(given, "O!LLpLOO", &PyTuple_Type, &shot->payloads, &shot->first, &shot->timestamp,
                          &shot->marker, &shot->octets, &keyframe, &picture))
        return 0;
    Py_ssize_t count = PyTuple_GET_SIZE(shot->payloads);
    if (count < 1 || count > MAX_SEGMENTS) {
        PyErr_SetString(PyExc_ValueError, "a group has 1 to 64 packets");
        return 0;
    }
    return 1;
}

static PyObject *fan(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *groups_given, *senders_given, *left = NULL;
    Shot *shots = NULL;
    if (!PyArg_ParseTuple(args, "OO", &groups_given, &senders_given)) return NULL;
    PyObject *groups = PySequence_Tuple(groups_given); /* of our own: nobody changes it while the GIL is let go */
    if (!groups) return NULL;
    PyObject *senders = PySequence_Tuple(senders_given);
    if (!senders) {
        Py_DECREF(groups);
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(groups);
    shots = PyMem_New(Shot, count ? count : 1);
    left = PyList_New(0);
    if (!shots || !left) goto failed;
    long long end = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!read_shot(PyTuple_GET_ITEM(groups, i), &shots[i])) {
            if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "a group must be a tuple");
            goto failed;
        }
        end = shots[i].first + PyTuple_GET_SIZE(shots[i].payloads);
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(senders); i++) {
        PyObject *sender = PyTuple_GET_ITEM(senders, i);
        if (!PyObject_TypeCheck(sender, &OutgoingType)) {
            PyErr_SetString(PyExc_TypeError, "a sender must be an Outgoing");
            goto failed;
        }
        fetch_ahead(senders, i);
        Py_ssize_t done = serve((Outgoing *)sender, shots, count, end);
        if (done < 0) goto failed;
        if (done < count) {
            PyObject *pair = Py_BuildValue("(On)", sender, done);
            int full = !pair || PyList_Append(left, pair);
            Py_XDECREF(pair);
            if (full) goto failed;
        }
    }
    PyMem_Free(shots);
    Py_DECREF(groups);
    Py_DECREF(senders);
    return left;
failed:
    PyMem_Free(shots);
    Py_XDECREF(left);
    Py_DECREF(groups);
    Py_DECREF(senders);
    return NULL;
}

/* --- What comes before ------------------------------------------------------------------------------------------------ */

enum {
    FRAMING_SIZE = 4, /* '$', channel, length: RFC 2326 section 10.12 */
    NAL_SLICE = 1,
    FU_A = 28,
    FU_START = 0x80,
    FU_END = 0x40,
    MARKER = 0x80,
};

static unsigned get16(const uint8_t *at) { return (unsigned)at[0] << 8 | at[1]; }

static uint64_t get64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value << 8 | at[i];
    return value;
}

/* As h264.B_SLICE: slice_type B behind first_mb_in_slice 0. */
static int is_b_slice(uint8_t head) { return head >> 4 == 0xA || head >> 2 == 0x27; }

/* Where the packet at `at` ends, or 0 if it is not whole or not the one that is expected. */
static Py_ssize_t routine(const uint8_t *data, Py_ssize_t at, Py_ssize_t end, unsigned magic, unsigned sequence_number) {
    if (at > end - FRAMING_SIZE - HEADER_SIZE - 2 || get16(data + at) != magic) return 0;
    Py_ssize_t length = get16(data + at + 2), stop = at + FRAMING_SIZE + length;
    return length < HEADER_SIZE + 2 || stop > end || get16(data + at + 6) != sequence_number ? 0 : stop;
}

static PyObject *whole_picture(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *buffer_given;
    Py_ssize_t start, end;
    unsigned int magic, plain;
    int expected;
    unsigned long long source_before;
    if (!PyArg_ParseTuple(args, "O!nnIIiK", &PyByteArray_Type, &buffer_given, &start, &end, &magic, &plain, &expected,
                          &source_before))
        return NULL;
    if (start < 0 || end > PyByteArray_GET_SIZE(buffer_given)) {
        PyErr_SetString(PyExc_ValueError, "outside of the buffer");
        return NULL;
    }
    const uint8_t *data = (const uint8_t *)PyByteArray_AS_STRING(buffer_given);
    unsigned sequence_number = (unsigned)expected & 0xFFFF;
    Py_ssize_t stop = expected < 0 ? 0 : routine(data, start, end, magic, sequence_number);
    if (!stop) Py_RETURN_NONE;
    const uint8_t *payload = data + start + FRAMING_SIZE + HEADER_SIZE;
    uint64_t source = get64(data + start + 8);
    unsigned flags = get16(data + start + 4), indicator = payload[0], header = payload[1];
    if (source == source_before || (uint32_t)source != (uint32_t)source_before)
        Py_RETURN_NONE;
    if ((indicator & 0x1F) == NAL_SLICE && header & 0x80 && flags == (plain | MARKER) && !is_b_slice(header))
        return Py_BuildValue("(niKy#)", stop, 1, (unsigned long long)source, payload,
                             stop - start - FRAMING_SIZE - HEADER_SIZE);
    if ((indicator & 0x1F) != FU_A || header != (FU_START | NAL_SLICE) || flags != plain ||
        stop - start < FRAMING_SIZE + HEADER_SIZE + 4 || !(payload[2] & 0x80) || is_b_slice(payload[2]))
        Py_RETURN_NONE;
    /* First how long it is, so that it is copied once. */
    Py_ssize_t size = 1 + stop - start - FRAMING_SIZE - HEADER_SIZE - 2, at = stop;
    int count = 1, last = 0;
    while (!last) {
        sequence_number = (sequence_number + 1) & 0xFFFF;
        stop = routine(data, at, end, magic, sequence_number);
        if (!stop || get64(data + at + 8) != source) Py_RETURN_NONE;
        const uint8_t *next = data + at + FRAMING_SIZE + HEADER_SIZE;
        flags = get16(data + at + 4);
        last = flags == (plain | MARKER) && next[1] == (FU_END | NAL_SLICE);
        if (next[0] != indicator || (!last && (flags != plain || next[1] != NAL_SLICE))) Py_RETURN_NONE;
        size += stop - at - FRAMING_SIZE - HEADER_SIZE - 2;
        at = stop;
        count++;
    }
    PyObject *nal_unit = PyBytes_FromStringAndSize(NULL, size);
    if (!nal_unit) return NULL;
    char *to = PyBytes_AS_STRING(nal_unit);
    *to++ = (char)((indicator & 0xE0) | NAL_SLICE);
    for (at = start; at < stop;) {
        Py_ssize_t next = at + FRAMING_SIZE + get16(data + at + 2), from = at + FRAMING_SIZE + HEADER_SIZE + 2;
        memcpy(to, data + from, next - from);
        to += next - from;
        at = next;
    }
    return Py_BuildValue("(niKN)", stop, count, (unsigned long long)source, nal_unit);
}

static PyObject *fragment(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *nal_unit;
    Py_ssize_t size, max_payload_size;
    if (!PyArg_ParseTuple(args, "y#n", &nal_unit, &size, &max_payload_size)) return NULL;
    if (max_payload_size < 3 || size <= max_payload_size) {
        PyErr_SetString(PyExc_ValueError, "too small to be cut");
        return NULL;
    }
    size--; /* the header goes into the FU header */
    Py_ssize_t count = (size + max_payload_size - 3) / (max_payload_size - 2), step = (size + count - 1) / count;
    count = (size + step - 1) / step;
    PyObject *payloads = PyTuple_New(count);
    if (!payloads) return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t start = i * step, length = start + step < size ? step : size - start;
        PyObject *payload = PyBytes_FromStringAndSize(NULL, 2 + length);
        if (!payload) {
            Py_DECREF(payloads);
            return NULL;
        }
        char *to = PyBytes_AS_STRING(payload);
        to[0] = (char)((nal_unit[0] & 0xE0) | FU_A);
        to[1] = (char)((nal_unit[0] & 0x1F) | (i == 0 ? FU_START : i == count - 1 ? FU_END : 0));
        memcpy(to + 2, nal_unit + 1 + start, length);
        PyTuple_SET_ITEM(payloads, i, payload);
    }
    return payloads;
}

static PyMethodDef functions[] = {
    {"fan", fan, METH_VARARGS,
     "fan(groups, senders) -> [(sender, first group that was not sent)]; see stream.fan_out."},
    {"whole_picture", whole_picture, METH_VARARGS,
     "whole_picture(buffer, start, end, magic, plain, expected, source) -> (stop, packets, source, nal_unit) | None."},
    {"fragment", fragment, METH_VARARGS, "fragment(nal_unit, max_payload_size) -> FU-A payloads of even size."},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gateway.streams._fan",
    .m_doc = "The compiled inner loops.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__fan(void) {
    if (PyType_Ready(&GateType) < 0 || PyType_Ready(&LaneType) < 0 || PyType_Ready(&OutgoingType) < 0) return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (!module) return NULL;
    if (PyModule_AddObjectRef(module, "Gate", (PyObject *)&GateType) < 0 ||
        PyModule_AddObjectRef(module, "Lane", (PyObject *)&LaneType) < 0 ||
        PyModule_AddObjectRef(module, "Outgoing", (PyObject *)&OutgoingType) < 0 ||
        PyModule_AddIntConstant(module, "INTERFACE", 2) < 0) { /* raise it with compiled.INTERFACE */
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
