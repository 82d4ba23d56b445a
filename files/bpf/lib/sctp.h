// SPDX-License-Identifier: GPL-2.0-only
/*
 * SCTP as net/netfilter/nf_conntrack_proto_sctp.c tracks it: the transition
 * table, and the verification tags of both sides.
 */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"

#define SCTP_INIT_BYTES	20	/* INIT and INIT ACK at least (RFC 9260, 3.3.2) */
#define SCTP_LISTED	16	/* control chunks of a packet that are followed */
#define CHUNK_BIT(name)	(1U << CHUNK_##name)

enum sctp_flag {
	SCTP_TAG_FAILED = 0x01,	/* a HEARTBEAT had another tag; last_dir tells whose */
};

/* What became of it. */
enum sctp_verdict {
	SCTP_TRACK,	/* counts in the flow */
	SCTP_IGNORE,	/* let pass, neither counted nor refreshed */
	SCTP_BAD_TAG,
	SCTP_BAD_STATE,
};

/* These have rules of their own for the tag (RFC 9260, 8.5.1), or are looser here. */
#define SCTP_OWN_TAG_RULE								\
	(CHUNK_BIT(INIT) | CHUNK_BIT(SHUTDOWN_COMPLETE) | CHUNK_BIT(COOKIE_ECHO) |	\
	 CHUNK_BIT(ABORT) | CHUNK_BIT(SHUTDOWN_ACK) | CHUNK_BIT(HEARTBEAT) | CHUNK_BIT(HEARTBEAT_ACK))

/* These are answered only where an association is (RFC 9260, 8.4), or belong into one. */
#define SCTP_NEVER_FIRST								\
	(CHUNK_BIT(ABORT) | CHUNK_BIT(SHUTDOWN_COMPLETE) | CHUNK_BIT(COOKIE_ACK) |	\
	 CHUNK_BIT(DATA) | CHUNK_BIT(OTHER))

/*
 * Whether the packet may open a flow.  No tag is known yet, so what checks one
 * takes 0; a HEARTBEAT, sent over another path of an association, tells it.
 */
static __always_inline bool sctp_opens(const struct sctp_seg *seg)
{
	if (seg->seen & SCTP_NEVER_FIRST)
		return false;
	if (!seg->vtag)
		return true;
	if (seg->seen & CHUNK_BIT(INIT))
		return false;
	if (seg->seen & CHUNK_BIT(HEARTBEAT))
		return true;
	return seg->seen & (CHUNK_BIT(SHUTDOWN_ACK) | CHUNK_BIT(HEARTBEAT_ACK)) &&
	       !(seg->seen & CHUNK_BIT(COOKIE_ECHO));
}

/* The first packet of a flow: which tag it tells. */
static __always_inline void sctp_open(struct ct_entry *e, const struct sctp_seg *seg)
{
	if (seg->seen & CHUNK_BIT(INIT))
		e->half[DIR_REPLY].vtag = seg->init_tag;
	if (seg->seen & CHUNK_BIT(HEARTBEAT))
		e->half[DIR_ORIG].vtag = seg->vtag;
	if (seg->seen & CHUNK_BIT(SHUTDOWN_ACK))
		e->half[DIR_REPLY].vtag = seg->vtag;	/* a SHUTDOWN COMPLETE comes back (RFC 9260, 8.4) */
}

/*
 * A HEARTBEAT or its acknowledgement with a tag that is not the known one: a
 * change of tags is believed when the other side acknowledges it.
 */
static __always_inline enum sctp_verdict sctp_other_tag(struct ct_entry *e, u64 dir, u8 chunk, const struct sctp_seg *seg)
{
	if (seg->seen & CHUNK_BIT(DATA) || seg->ignore)
		return SCTP_BAD_TAG;
	if (chunk == CHUNK_HEARTBEAT) {
		e->last_flags |= SCTP_TAG_FAILED;
		e->last_dir = dir;
		return SCTP_IGNORE;
	}
	if (!(e->last_flags & SCTP_TAG_FAILED) || e->last_dir == dir)
		return SCTP_BAD_TAG;
	e->last_flags &= ~SCTP_TAG_FAILED;
	e->half[dir & 1].vtag = seg->vtag;
	e->half[(dir ^ 1) & 1].vtag = 0;
	return SCTP_TRACK;
}

/* The tag's rule for one chunk, and what the chunk does to the known tags before the transition. */
static __always_inline enum sctp_verdict sctp_check_tag(struct ct_entry *e, u64 dir, u8 chunk, bool reflected,
							const struct sctp_seg *seg)
{
	struct ct_half *own = &e->half[dir & 1], *peer = &e->half[(dir ^ 1) & 1];

	switch (chunk) {
	case CHUNK_INIT:
		return seg->vtag ? SCTP_BAD_TAG : SCTP_TRACK;
	case CHUNK_ABORT:
	case CHUNK_SHUTDOWN_COMPLETE:
		return seg->vtag == (reflected ? peer->vtag : own->vtag) ? SCTP_TRACK : SCTP_BAD_TAG;
	case CHUNK_COOKIE_ECHO:
		return seg->vtag == own->vtag ? SCTP_TRACK : SCTP_BAD_TAG;
	case CHUNK_COOKIE_ACK:
		e->td_flags[0] = 0;
		e->td_flags[1] = 0;
		return SCTP_TRACK;
	case CHUNK_HEARTBEAT:
	case CHUNK_HEARTBEAT_ACK:
		if (!own->vtag)
			own->vtag = seg->vtag;
		else if (own->vtag != seg->vtag)
			return sctp_other_tag(e, dir, chunk, seg);
		else
			e->last_flags &= ~SCTP_TAG_FAILED;
		return SCTP_TRACK;
	default:
		return SCTP_TRACK;
	}
}

/* INIT and INIT ACK name the tag that the other side is to send. */
static __always_inline enum sctp_verdict sctp_take_tag(struct ct_entry *e, u64 dir, u8 chunk, const struct sctp_seg *seg)
{
	u8 own = dir & 1, peer = (dir ^ 1) & 1;
	u32 known = e->half[peer].vtag;

	if (chunk == CHUNK_INIT) {
		/* with the known tag it came again, or is an old one: it begins nothing */
		if (seg->state == SCTP_NONE || known != seg->init_tag) {
			if (e->td_flags[own])
				e->td_flags[peer] = 0;
			e->td_flags[own] = 1;
		}
	} else if (known != seg->init_tag && (e->td_flags[peer] ? e->td_flags[own] : known)) {
		return SCTP_BAD_TAG;	/* an answer to nothing, or both sides began at once */
	}
	e->half[peer].vtag = seg->init_tag;
	return SCTP_TRACK;
}

static __always_inline u8 sctp_next_state(const struct ct_settings *set, u64 dir, u8 chunk, u8 state)
{
	u32 row = (dir & 1) * NR_SCTP_ROWS + chunk - CHUNK_INIT;

	return row < 2 * NR_SCTP_ROWS ? set->sctp_row[row] >> state * 4 & 0xf : SCTP_INVALID;
}

/* The timeout in jiffies of a packet that was taken. */
static __always_inline u32 sctp_timeout(u8 state, const struct ct_settings *set)
{
	u32 i = TIMEOUT_SCTP_CLOSED + state - SCTP_CLOSED;

	return set->timeout[i < NR_TIMEOUTS ? i : TIMEOUT_SCTP_CLOSED];
}

/*
 * One packet of a known association, or the first one after sctp_open(), from
 * the state in seg on.  What the chunks before a bad one changed stays changed,
 * as in the kernel.
 */
static __always_inline enum sctp_verdict sctp_track(struct ct_entry *e, u64 dir, struct sctp_seg *seg,
						    const struct ct_settings *set)
{
	u32 i, reflected = seg->reflected;
	enum sctp_verdict verdict;
	u64 chunks = seg->chunks;
	u8 chunk, state;

	if (!(seg->seen & SCTP_OWN_TAG_RULE) && seg->vtag != e->half[dir & 1].vtag)
		return SCTP_BAD_TAG;
#pragma clang loop unroll(disable)
	for (i = 0; i < SCTP_LISTED; i++) {
		OPAQUE(i);
		chunk = chunks & 0xf;
		if (chunk == CHUNK_OTHER)
			break;
		verdict = sctp_check_tag(e, dir, chunk, reflected & 1, seg);
		chunks >>= 4;
		reflected >>= 1;
		if (verdict == SCTP_BAD_TAG)
			return verdict;
		if (verdict == SCTP_IGNORE) {
			seg->ignore = 1;
			continue;
		}
		state = sctp_next_state(set, dir, chunk, seg->state);
		if (state == SCTP_INVALID)
			return SCTP_BAD_STATE;
		if (chunk == CHUNK_INIT || chunk == CHUNK_INIT_ACK) {
			if (sctp_take_tag(e, dir, chunk, seg) == SCTP_BAD_TAG)
				return SCTP_BAD_TAG;
			/* repeated, it must not keep the entry alive: the tuple is used again */
			if (chunk == CHUNK_INIT && state == SCTP_CLOSED && seg->state == SCTP_CLOSED)
				seg->ignore = 1;
		}
		seg->state = state;
		seg->established |= state == SCTP_ESTABLISHED;
	}
	return seg->ignore ? SCTP_IGNORE : SCTP_TRACK;
}
