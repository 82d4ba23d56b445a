// SPDX-License-Identifier: GPL-2.0-only
/* Slot 20: SCTP; the checks are sctp_error()'s and do_basic_checks()'s in nf_conntrack_proto_sctp.c. */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "templates/maps.h.j2"
#include "lib/packet.h"
#include "lib/l4.h"
#include "lib/sctp.h"
#include "templates/crc32c.h.j2"

#define SCTP_MAX_CHUNKS	128	/* of a packet that are looked at: more data chunks than fit 1500 bytes */

/* RFC 9260, 3.2 */
struct sctp_chunk_header {
	u8 type;
	u8 flags;
	__be16 length;
};

/* How INIT and INIT ACK begin. */
struct sctp_init {
	struct sctp_chunk_header chunk;
	u32 init_tag;
};

#define SCTP_FLAG_T	0x01	/* the tag is the receiver's own, reflected */

/* The kind of a chunk by its type, four bits each; those above 15 are other ones. */
#define CHUNK_OF(type, name)	((u64)CHUNK_##name << (type) * 4)
#define CHUNK_TABLE									\
	(CHUNK_OF(0, DATA) | CHUNK_OF(1, INIT) | CHUNK_OF(2, INIT_ACK) |		\
	 CHUNK_OF(4, HEARTBEAT) | CHUNK_OF(5, HEARTBEAT_ACK) | CHUNK_OF(6, ABORT) |	\
	 CHUNK_OF(7, SHUTDOWN) | CHUNK_OF(8, SHUTDOWN_ACK) | CHUNK_OF(9, ERROR) |	\
	 CHUNK_OF(10, COOKIE_ECHO) | CHUNK_OF(11, COOKIE_ACK) | CHUNK_OF(14, SHUTDOWN_COMPLETE))

#define SCTP_ALONE	(CHUNK_BIT(INIT) | CHUNK_BIT(INIT_ACK) | CHUNK_BIT(SHUTDOWN_COMPLETE))
#define SCTP_FIRST	(SCTP_ALONE | CHUNK_BIT(COOKIE_ECHO) | CHUNK_BIT(COOKIE_ACK))

/* Fill in the chunks between off and end; return 0, or what a packet is counted as in which they can not stand so. */
static __always_inline u32 sctp_parse_chunks(struct xdp_md *ctx, struct sctp_seg *seg, u32 off, u32 end)
{
	struct sctp_chunk_header *chunk;
	u32 i, pos = off, kind, size;

#pragma clang loop unroll(disable)
	for (i = 0; i < SCTP_MAX_CHUNKS; i++) {
		OPAQUE(i);
		if (pos + sizeof(*chunk) > end || pos > MAX_PAYLOAD_OFF)
			break;
		chunk = payload_at(ctx, pos, sizeof(*chunk));
		if (!chunk)
			break;
		size = bpf_ntohs(chunk->length);
		if (!size)
			return COUNT_INVALID_SCTP_CHUNKS;
		kind = chunk->type & 0xf0 ? CHUNK_OTHER : CHUNK_TABLE >> (chunk->type & 0xf) * 4 & 0xf;
		/* INIT, INIT ACK and SHUTDOWN COMPLETE stand alone, and nothing before a cookie */
		if (i && (seg->seen & SCTP_ALONE || 1U << kind & SCTP_FIRST))
			return COUNT_INVALID_SCTP_CHUNKS;
		seg->seen |= 1U << kind;
		if (kind != CHUNK_OTHER && kind != CHUNK_DATA) {
			if (seg->listed >= SCTP_LISTED)
				return COUNT_UNTRACKED_LIMIT;
			seg->chunks |= (u64)kind << seg->listed * 4;
			seg->reflected |= (chunk->flags & SCTP_FLAG_T) << seg->listed;
			seg->listed++;
		}
		pos += (size + 3) & ~3;
	}
	return seg->seen ? 0 : COUNT_INVALID_SCTP_CHUNKS;
}

STAGE(prs_sctp)
{
	struct scratch *here = scratch_here();
	struct sctp_header *sctp;
	struct sctp_init *init;
	struct sctp_seg *seg;
	u32 why;

	sctp = l4_at(ctx, f, sizeof(*sctp));
	if (!here || !sctp)
		return outcome(ctx, COUNT_INVALID_L4_SHORT, chained);
	f->sport = sctp->source;
	f->dport = sctp->dest;
	if (!sctp_csum_ok(ctx, f, sctp))
		return outcome(ctx, COUNT_INVALID_CHECKSUM, chained);
	seg = &here->sctp;
	__builtin_memset(seg, 0, sizeof(*seg));
	seg->vtag = sctp->vtag;
	why = sctp_parse_chunks(ctx, seg, f->l4_off + sizeof(*sctp), f->l3_off + f->bytes);
	if (why)
		return outcome(ctx, why, chained);
	if (seg->seen & (CHUNK_BIT(INIT) | CHUNK_BIT(INIT_ACK))) {
		init = frame_at(ctx, f->l4_off + sizeof(*sctp), sizeof(*init));
		if (!init || (l4_bytes(f) < sizeof(*sctp) + SCTP_INIT_BYTES && !(f->bits & FLOW_FRAGMENT)))
			return outcome(ctx, COUNT_INVALID_SCTP_CHUNKS, chained);
		seg->init_tag = init->init_tag;
	}
	if (sctp_opens(seg))
		f->bits |= FLOW_OPENS;
	return track(ctx, f, chained);
}
