/* The compiled inner loop of the fan-out: RTP header, SRTP and one sendmsg with UDP_SEGMENT for each viewer.

   It does exactly what srtp.GcmSender/CmSender and carrier.UdpSocket do in Python, byte for byte, and nothing they
   don't: whatever does not go smoothly (no UDP path, a full queue, a kernel that refuses GSO, any error) is handed
   back, and Python goes through the same group by its own path. Sealing a packet again gives the same bytes, so no
   nonce is ever used for two packets.

   Gate: one UDP socket and whether it may be used now.  Lane: one link, its session keys and where it sends to.
   fan(): every group to every sender.

   One thread at a time: the buffer is shared, and the GIL is let go only around sendmsg, when none but the event
   loop's thread calls in here. Sources: RFC 3711 section 4.1.1 and 4.2.1, RFC 7714 section 8, RFC 2104. */

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

/* --- fan() ----------------------------------------------------------------------------------------------------------- */

static struct {
    PyObject *lane, *index_offset, *timestamp_offset, *ssrc, *payload_type, *cursor, *packets, *octets;
} names;

typedef struct {
    PyObject *payloads; /* borrowed from the group */
    long long first, timestamp, octets;
    int marker;
} Shot;

static int get_number(PyObject *object, PyObject *name, long long *value) {
    PyObject *number = PyObject_GetAttr(object, name);
    if (!number) return 0;
    *value = PyLong_AsLongLong(number);
    Py_DECREF(number);
    return *value != -1 || !PyErr_Occurred();
}

static int set_number(PyObject *object, PyObject *name, long long value) {
    PyObject *number = PyLong_FromLongLong(value);
    if (!number) return 0;
    int failed = PyObject_SetAttr(object, name, number);
    Py_DECREF(number);
    return failed == 0;
}

static int add_number(PyObject *object, PyObject *name, long long more) {
    long long value;
    return more == 0 || (get_number(object, name, &value) && set_number(object, name, value + more));
}

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
static Py_ssize_t serve(PyObject *sender, const Shot *shots, Py_ssize_t count, long long end) {
    PyObject *lane_object = PyObject_GetAttr(sender, names.lane);
    if (!lane_object) return -1;
    if (!PyObject_TypeCheck(lane_object, &LaneType)) {
        Py_DECREF(lane_object);
        return 0;
    }
    Lane *lane = (Lane *)lane_object;
    Py_ssize_t done = 0;
    long long index_offset, timestamp_offset, ssrc, payload_type, packets = 0, octets = 0;
    if (!ready(lane)) goto failed;
    if (!lane->gate || !lane->gate->open) goto finished;
    if (!get_number(sender, names.index_offset, &index_offset) ||
        !get_number(sender, names.timestamp_offset, &timestamp_offset) || !get_number(sender, names.ssrc, &ssrc) ||
        !get_number(sender, names.payload_type, &payload_type))
        goto failed;
    for (; done < count; done++) {
        const Shot *shot = &shots[done];
        Py_ssize_t segments = PyTuple_GET_SIZE(shot->payloads);
        Numbers numbers = {(uint64_t)(shot->first + index_offset), (uint32_t)(shot->timestamp + timestamp_offset),
                           (uint32_t)ssrc, payload_type & 0x7F, shot->marker};
        Py_ssize_t size = seal_group(lane, shot->payloads, numbers);
        if (size < 0) goto failed;
        Py_ssize_t segment = PyBytes_GET_SIZE(PyTuple_GET_ITEM(shot->payloads, 0)) + HEADER_SIZE + tag_size(lane);
        if (!send_group(lane, size, segments, (uint16_t)segment)) break;
        packets += segments;
        octets += shot->octets;
    }
    if (!set_number(sender, names.cursor, end) || !add_number(sender, names.packets, packets) ||
        !add_number(sender, names.octets, octets))
        goto failed;
finished:
    Py_DECREF(lane_object);
    return done;
failed:
    Py_DECREF(lane_object);
    return -1;
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
        Py_ssize_t done = serve(sender, shots, count, end);
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

static PyMethodDef functions[] = {
    {"fan", fan, METH_VARARGS,
     "fan(groups, senders) -> [(sender, first group that was not sent)]; see stream.fan_out."},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gateway.streams._fan",
    .m_doc = "The compiled inner loop of the fan-out.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__fan(void) {
    if (PyType_Ready(&GateType) < 0 || PyType_Ready(&LaneType) < 0) return NULL;
    struct {
        PyObject **name;
        const char *text;
    } wanted[] = {
        {&names.lane, "lane"}, {&names.index_offset, "index_offset"}, {&names.timestamp_offset, "timestamp_offset"},
        {&names.ssrc, "ssrc"}, {&names.payload_type, "payload_type"}, {&names.cursor, "cursor"},
        {&names.packets, "packets"}, {&names.octets, "octets"},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!(*wanted[i].name = PyUnicode_InternFromString(wanted[i].text))) return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (!module) return NULL;
    if (PyModule_AddObjectRef(module, "Gate", (PyObject *)&GateType) < 0 ||
        PyModule_AddObjectRef(module, "Lane", (PyObject *)&LaneType) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
