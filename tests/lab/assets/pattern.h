/*
 * The frames that the laboratory sends, and how they are verified. Shared by frames.c (AF_PACKET) and dpdk_frames.c.
 *
 * Two kinds of frames:
 *  - plain: Ethernet, EtherType 0x88b5 (IEEE 802 local experimental), then magic, seed, sequence number and length as
 *    big-endian 32-bit words, then bytes derived from seed and sequence number up to the frame's length;
 *  - TCP: Ethernet, IPv4 or IPv6, TCP. The payload of all frames of one run is one stream of bytes derived from the
 *    seed; the TCP sequence number is the offset in that stream. So a receiver can verify every byte whether a
 *    super-frame arrives whole, segmented or merged.
 *
 * A frame's size counts from the destination MAC to the last payload byte, without a VLAN tag and without the FCS.
 * Addresses: 198.18.0.0/15 (RFC 2544) and 2001:2::/48 (RFC 5180), which are reserved for benchmarks.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include <arpa/inet.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATTERN_ETHERTYPE 0x88b5
#define PATTERN_MAGIC 0x544c4652u /* "TLFR" */
#define PATTERN_PLAIN_HEADER (14 + 16)
#define PATTERN_PORT 50000
#define PATTERN_MAX_FRAME 65535
#define PATTERN_NO_TAG (-1)
#define PATTERN_ANY_TAG (-2)

enum proto { PROTO_PLAIN, PROTO_TCP4, PROTO_TCP6 };

/* What is owed to, or known about, the TCP checksum of a received frame. */
enum checksum { CHECKSUM_FULL, CHECKSUM_PARTIAL, CHECKSUM_TRUSTED };

struct traffic {
	enum proto proto;
	uint32_t seed;
	size_t sizes[64];
	size_t size_count;
	uint32_t count; /* frames of each size */
};

struct report {
	uint64_t frames, payload_bytes, expected, received; /* expected/received: frames if plain, stream bytes if TCP */
	uint64_t damaged, wrong_length, bad_checksum, duplicates, reordered, tagged, wrong_tag, foreign;
	size_t largest;
	int last_tag;
	uint64_t next;  /* plain: next sequence number in order; TCP: next stream offset */
	uint8_t *seen;  /* how often each plain frame, or each byte of the stream, has arrived */
};

static inline uint64_t pattern_word(uint64_t stream, uint64_t index)
{
	uint64_t x = stream * 0x9e3779b97f4a7c15ull + index + 1; /* splitmix64's finalizer */
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static inline void pattern_fill(uint8_t *out, size_t len, uint64_t stream, uint64_t offset)
{
	uint64_t word = pattern_word(stream, offset >> 3) >> (8 * (offset & 7));

	for (size_t i = 0; i < len; i++, word >>= 8) {
		if (((offset + i) & 7) == 0)
			word = pattern_word(stream, (offset + i) >> 3);
		out[i] = (uint8_t)word;
	}
}

static inline bool pattern_matches(const uint8_t *in, size_t len, uint64_t stream, uint64_t offset)
{
	uint64_t word = pattern_word(stream, offset >> 3) >> (8 * (offset & 7));

	for (size_t i = 0; i < len; i++, word >>= 8) {
		if (((offset + i) & 7) == 0)
			word = pattern_word(stream, (offset + i) >> 3);
		if (in[i] != (uint8_t)word)
			return false;
	}
	return true;
}

static inline void put16(uint8_t *p, uint16_t v) { p[0] = v >> 8; p[1] = (uint8_t)v; }
static inline void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16); put16(p + 2, (uint16_t)v); }
static inline uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }

/* The Internet checksum's running sum (RFC 1071) over bytes in network order. */
static inline uint64_t sum_bytes(uint64_t sum, const uint8_t *p, size_t len)
{
	for (; len > 1; p += 2, len -= 2)
		sum += get16(p);
	return len ? sum + ((uint64_t)p[0] << 8) : sum;
}

static inline uint16_t fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static inline size_t network_header(enum proto proto) { return proto == PROTO_TCP6 ? 40 : 20; }

/* Bytes of a frame of this protocol that are not payload. */
static inline size_t frame_overhead(enum proto proto)
{
	return proto == PROTO_PLAIN ? PATTERN_PLAIN_HEADER : 14 + network_header(proto) + 20;
}

static inline uint64_t pseudo_sum(enum proto proto, const uint8_t *ip, size_t tcp_len)
{
	if (proto == PROTO_TCP4)
		return sum_bytes(0, ip + 12, 8) + 6 + tcp_len;
	return sum_bytes(0, ip + 8, 32) + 6 + (tcp_len >> 16) + (tcp_len & 0xffff);
}

static inline size_t build_ethernet(uint8_t *out, const uint8_t *dst, const uint8_t *src, int vlan, uint16_t type)
{
	memcpy(out, dst, 6);
	memcpy(out + 6, src, 6);
	if (vlan == PATTERN_NO_TAG) {
		put16(out + 12, type);
		return 14;
	}
	put16(out + 12, 0x8100);
	put16(out + 14, (uint16_t)vlan);
	put16(out + 16, type);
	return 18;
}

/*
 * Builds one frame of `size` bytes (plus 4 if tagged) and returns its length. `position` is the sequence number of a
 * plain frame, or the stream offset of a TCP frame, whose checksum field holds the sum of the pseudo header only, as
 * virtio's NEEDS_CSUM wants it. *link_len gets the length of the Ethernet header.
 */
static inline size_t build_frame(uint8_t *out, const struct traffic *t, const uint8_t *dst, const uint8_t *src, int vlan,
				 uint64_t position, size_t size, size_t *link_len)
{
	static const uint8_t from6[16] = { 0x20, 0x01, 0, 2, [15] = 1 }, to6[16] = { 0x20, 0x01, 0, 2, [15] = 2 };
	uint16_t type = t->proto == PROTO_PLAIN ? PATTERN_ETHERTYPE : t->proto == PROTO_TCP4 ? 0x0800 : 0x86dd;
	size_t link = build_ethernet(out, dst, src, vlan, type);
	uint8_t *ip = out + link, *tcp;
	size_t tcp_len;

	*link_len = link;
	if (t->proto == PROTO_PLAIN) {
		put32(ip, PATTERN_MAGIC);
		put32(ip + 4, t->seed);
		put32(ip + 8, (uint32_t)position);
		put32(ip + 12, (uint32_t)size);
		pattern_fill(ip + 16, size - PATTERN_PLAIN_HEADER, (uint64_t)t->seed << 32 | (uint32_t)position, 0);
		return link + size - 14;
	}
	tcp = ip + network_header(t->proto);
	tcp_len = size - 14 - network_header(t->proto);
	if (t->proto == PROTO_TCP4) {
		memset(ip, 0, 20);
		ip[0] = 0x45;
		put16(ip + 2, (uint16_t)(size - 14));
		put16(ip + 4, (uint16_t)(position >> 4));
		put16(ip + 6, 0x4000); /* DF */
		ip[8] = 64;
		ip[9] = 6;
		put32(ip + 12, 0xc6120001);
		put32(ip + 16, 0xc6120002);
		put16(ip + 10, (uint16_t)~fold(sum_bytes(0, ip, 20)));
	} else {
		memset(ip, 0, 8);
		ip[0] = 0x60;
		put16(ip + 4, (uint16_t)tcp_len);
		ip[6] = 6;
		ip[7] = 64;
		memcpy(ip + 8, from6, 16);
		memcpy(ip + 24, to6, 16);
	}
	memset(tcp, 0, 20);
	put16(tcp, PATTERN_PORT);
	put16(tcp + 2, PATTERN_PORT + 1);
	put32(tcp + 4, (uint32_t)position);
	tcp[12] = 5 << 4;
	tcp[13] = 0x10; /* ACK */
	put16(tcp + 14, 65535);
	put16(tcp + 16, fold(pseudo_sum(t->proto, ip, tcp_len)));
	pattern_fill(tcp + 20, tcp_len - 20, t->seed, position);
	return link + size - 14;
}

/* Turns the pseudo header's sum in a built TCP frame into the complete checksum. */
static inline void complete_checksum(uint8_t *frame, size_t len, enum proto proto, size_t link)
{
	uint8_t *tcp = frame + link + network_header(proto);
	put16(tcp + 16, (uint16_t)~fold(sum_bytes(0, tcp, len - (size_t)(tcp - frame))));
}

static inline void report_init(struct report *r, const struct traffic *t)
{
	memset(r, 0, sizeof(*r));
	r->last_tag = PATTERN_NO_TAG;
	for (size_t i = 0; i < t->size_count; i++)
		r->expected += (uint64_t)t->count * (t->proto == PROTO_PLAIN ? 1 : t->sizes[i] - frame_overhead(t->proto));
	r->seen = calloc(1, r->expected + 1);
	if (!r->seen)
		abort();
}

static inline bool report_complete(const struct report *r) { return r->received >= r->expected; }

/* Nothing lost, nothing twice, nothing altered, nothing on the wrong VLAN. */
static inline bool report_clean(const struct report *r)
{
	return r->received == r->expected && !r->damaged && !r->wrong_length && !r->bad_checksum && !r->duplicates &&
	       !r->wrong_tag;
}

static inline void verify_plain(struct report *r, const struct traffic *t, const uint8_t *p, size_t len)
{
	uint32_t sequence = get32(p + 8), size = get32(p + 12);
	bool padded = size < 60 && len + 14 == 60;

	r->frames++;
	if (size < PATTERN_PLAIN_HEADER || size - 14 > len || (size - 14 != len && !padded)) {
		r->wrong_length++;
		return;
	}
	r->payload_bytes += size - PATTERN_PLAIN_HEADER;
	if (sequence >= r->expected ||
	    !pattern_matches(p + 16, size - PATTERN_PLAIN_HEADER, (uint64_t)t->seed << 32 | sequence, 0)) {
		r->damaged++;
		return;
	}
	if (sequence < r->next && !r->seen[sequence])
		r->reordered++;
	if (r->seen[sequence]++) {
		r->duplicates++;
		return;
	}
	r->received++;
	if (sequence >= r->next)
		r->next = sequence + 1;
}

static inline void verify_tcp(struct report *r, const struct traffic *t, const uint8_t *ip, size_t len, enum checksum sum)
{
	size_t network = network_header(t->proto), total, payload, tcp_len;
	const uint8_t *tcp = ip + network;
	uint64_t offset, twice = 0;

	r->frames++;
	total = t->proto == PROTO_TCP4 ? get16(ip + 2) : (size_t)get16(ip + 4) + 40;
	if (total > len || total < network + 20 || (total != len && len + 14 > 60)) {
		r->wrong_length++;
		return;
	}
	tcp_len = total - network;
	payload = tcp_len - 20;
	r->payload_bytes += payload;
	if (t->proto == PROTO_TCP4 && fold(sum_bytes(0, ip, 20)) != 0xffff)
		r->bad_checksum++;
	else if (sum == CHECKSUM_PARTIAL && get16(tcp + 16) != fold(pseudo_sum(t->proto, ip, tcp_len)))
		r->bad_checksum++;
	else if (sum == CHECKSUM_FULL && fold(pseudo_sum(t->proto, ip, tcp_len) + sum_bytes(0, tcp, tcp_len)) != 0xffff)
		r->bad_checksum++;
	/* The 32-bit sequence number, unwrapped to the stream offset nearest to where the stream is. */
	offset = r->next + (uint64_t)(int64_t)(int32_t)(get32(tcp + 4) - (uint32_t)r->next);
	if (offset > r->expected || payload > r->expected - offset || !pattern_matches(tcp + 20, payload, t->seed, offset)) {
		r->damaged++;
		return;
	}
	for (uint64_t i = offset; i < offset + payload; i++)
		twice += r->seen[i]++ ? 1 : 0;
	if (twice)
		r->duplicates++;
	else if (offset < r->next)
		r->reordered++;
	r->received += payload - twice;
	if (offset + payload > r->next)
		r->next = offset + payload;
}

/*
 * Takes one received frame. `tag` is a VLAN id that was stripped from it, or PATTERN_NO_TAG; a tag still in the frame is
 * found here. `wanted_tag` may be PATTERN_ANY_TAG. Frames of others are counted as foreign and otherwise ignored.
 */
static inline void verify_frame(struct report *r, const struct traffic *t, const uint8_t *frame, size_t len, int tag,
				int wanted_tag, enum checksum sum)
{
	size_t link = 14;
	uint16_t type;

	if (len < 14)
		return;
	type = get16(frame + 12);
	if (type == 0x8100 && len >= 18) {
		tag = get16(frame + 14) & 0xfff;
		type = get16(frame + 16);
		link = 18;
	}
	if (t->proto == PROTO_PLAIN) {
		if (type != PATTERN_ETHERTYPE || len < link + 16 || get32(frame + link) != PATTERN_MAGIC ||
		    get32(frame + link + 4) != t->seed) {
			r->foreign++;
			return;
		}
	} else {
		const uint8_t *ip = frame + link, *tcp = ip + network_header(t->proto);
		bool ours = t->proto == PROTO_TCP4 ? type == 0x0800 && len >= link + 40 && ip[0] == 0x45 && ip[9] == 6
						   : type == 0x86dd && len >= link + 60 && ip[6] == 6;
		if (!ours || get16(tcp) != PATTERN_PORT || get16(tcp + 2) != PATTERN_PORT + 1) {
			r->foreign++;
			return;
		}
	}
	if (tag != PATTERN_NO_TAG)
		r->tagged++;
	r->last_tag = tag;
	if (wanted_tag != PATTERN_ANY_TAG && tag != wanted_tag)
		r->wrong_tag++;
	if (len - link + 14 > r->largest)
		r->largest = len - link + 14;
	if (t->proto == PROTO_PLAIN)
		verify_plain(r, t, frame + link, len - link);
	else
		verify_tcp(r, t, frame + link, len - link, sum);
}

static inline void report_print(FILE *out, const struct report *r)
{
	fprintf(out,
		"{\"frames\":%llu,\"payload_bytes\":%llu,\"expected\":%llu,\"received\":%llu,\"damaged\":%llu,"
		"\"wrong_length\":%llu,\"bad_checksum\":%llu,\"duplicates\":%llu,\"reordered\":%llu,\"tagged\":%llu,"
		"\"wrong_tag\":%llu,\"foreign\":%llu,\"largest\":%zu,\"last_tag\":%d,\"clean\":%s}",
		(unsigned long long)r->frames, (unsigned long long)r->payload_bytes, (unsigned long long)r->expected,
		(unsigned long long)r->received, (unsigned long long)r->damaged, (unsigned long long)r->wrong_length,
		(unsigned long long)r->bad_checksum, (unsigned long long)r->duplicates, (unsigned long long)r->reordered,
		(unsigned long long)r->tagged, (unsigned long long)r->wrong_tag, (unsigned long long)r->foreign, r->largest,
		r->last_tag, report_clean(r) ? "true" : "false");
}

/* Reads one of the options that describe the traffic; returns false when `name` is none of them. */
static inline bool traffic_option(struct traffic *t, const char *name, const char *value)
{
	if (!strcmp(name, "--proto")) {
		t->proto = !strcmp(value, "tcp4") ? PROTO_TCP4 : !strcmp(value, "tcp6") ? PROTO_TCP6 : PROTO_PLAIN;
	} else if (!strcmp(name, "--seed")) {
		t->seed = (uint32_t)strtoul(value, NULL, 0);
	} else if (!strcmp(name, "--count")) {
		t->count = (uint32_t)strtoul(value, NULL, 0);
	} else if (!strcmp(name, "--sizes")) {
		for (t->size_count = 0; *value && t->size_count < 64; value += *value == ',')
			t->sizes[t->size_count++] = strtoul(value, (char **)&value, 0);
	} else {
		return false;
	}
	return true;
}

/* Says what is wrong with the traffic asked for, or NULL. */
static inline const char *traffic_error(const struct traffic *t)
{
	if (!t->size_count || !t->count)
		return "--sizes and --count must name at least one frame";
	for (size_t i = 0; i < t->size_count; i++)
		if (t->sizes[i] <= frame_overhead(t->proto) || t->sizes[i] > PATTERN_MAX_FRAME)
			return "a size is too small for its headers or above 65535";
	return NULL;
}

static inline int parse_tag(const char *value)
{
	return !strcmp(value, "any") ? PATTERN_ANY_TAG : !strcmp(value, "none") ? PATTERN_NO_TAG : atoi(value);
}

#endif
