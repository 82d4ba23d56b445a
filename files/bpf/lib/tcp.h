// SPDX-License-Identifier: GPL-2.0-only
/*
 * TCP as net/netfilter/nf_conntrack_proto_tcp.c tracks it: the transition
 * table, the checks around it, and the windows of both sides.
 */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "lib/l4.h"

/*
 * The class of a segment by its FIN, SYN, RST and ACK bits, four bits each: no
 * branches, whose outcomes the verifier would follow to the end.
 */
#define CLASS_OF(bits, class)	((u64)CLASS_##class << (bits) * 4)
#define CLASS_TABLE									\
	(CLASS_OF(0, NONE) | CLASS_OF(1, FIN) | CLASS_OF(2, SYN) | CLASS_OF(3, SYN) |	\
	 CLASS_OF(4, RST) | CLASS_OF(5, RST) | CLASS_OF(6, RST) | CLASS_OF(7, RST) |	\
	 CLASS_OF(8, ACK) | CLASS_OF(9, FIN) | CLASS_OF(10, SYNACK) |			\
	 CLASS_OF(11, SYNACK) | CLASS_OF(12, RST) | CLASS_OF(13, RST) |			\
	 CLASS_OF(14, RST) | CLASS_OF(15, RST))

/* enum nf_ct_tcp_flags of include/uapi/linux/netfilter/nf_conntrack_tcp.h */
enum td_flag {
	TD_WINDOW_SCALE = 0x01,
	TD_SACK_PERM = 0x02,
	TD_CLOSE_INIT = 0x04,
	TD_BE_LIBERAL = 0x08,
	TD_DATA_UNACKNOWLEDGED = 0x10,
	TD_MAXACK_SET = 0x20,
	TD_EXP_CHALLENGE_ACK = 0x40,
	TD_SIMULTANEOUS_OPEN = 0x80,
};

#define TCP_MAX_ACK_WINDOW	66000	/* how far behind an acknowledgement may be */

/* What became of it. */
enum tcp_verdict {
	TCP_TRACK,		/* counts in the flow */
	TCP_TRACK_AND_KILL,	/* counts, and the entry goes */
	TCP_REOPEN,		/* the tuple's new connection: start over with this segment */
	TCP_RETRANSMIT_SYN,	/* let pass, neither counted nor refreshed */
	TCP_IGNORE_STATE,
	TCP_IGNORE_WINDOW,
	TCP_BAD_STATE,
	TCP_BAD_WINDOW,
	TCP_BAD_RST,
};

/*
 * Directions and states are kept in 64 bits: without 32-bit registers whatever
 * is narrower is masked again wherever it is used.
 */

/* Sequence numbers wrap; without 32-bit registers this is the shortest way to a sign. */
static __always_inline bool before(u32 a, u32 b)
{
	return (s64)((u64)(a - b) << 32) < 0;
}

static __always_inline bool after(u32 a, u32 b)
{
	return before(b, a);
}

static __always_inline u8 tcp_class(u8 flags)
{
	u32 bits = (flags & (TCP_FIN | TCP_SYN | TCP_RST)) | (flags & TCP_ACK) >> 1;

	return CLASS_TABLE >> bits * 4 & 0xf;
}

static __always_inline void tcp_seg_of(const struct flow *f, const struct tcphdr *tcp, struct tcp_seg *seg)
{
	seg->seq = bpf_ntohl(tcp->seq);
	seg->ack = bpf_ntohl(tcp->ack_seq);
	seg->sack = f->tcp_sack;
	seg->win = bpf_ntohs(tcp->window);
	seg->flags = f->tcp_flags;
	seg->class = tcp_class(f->tcp_flags);
	seg->opts = f->tcp_opts;
	seg->end = seg->seq + l4_bytes(f) - tcp->doff * 4 + (f->tcp_flags & TCP_SYN ? 1 : 0) +
		   (f->tcp_flags & TCP_FIN ? 1 : 0);
}

static __always_inline u64 tcp_next_state(const struct ct_settings *set, u64 dir, u8 class, u64 state)
{
	u32 row = (dir & 1) * NR_TCP_CLASSES + class;

	return row < 2 * NR_TCP_CLASSES ? set->tcp_row[row] >> state * 4 & 0xf : TCP_INVALID;
}

static __always_inline u8 scale_of(struct ct_entry *e, u64 dir)
{
	return dir == DIR_ORIG ? e->scale & 0xf : e->scale >> 4;
}

static __always_inline void set_scale(struct ct_entry *e, u64 dir, u8 scale)
{
	if (dir == DIR_ORIG)
		e->scale = (e->scale & 0xf0) | scale;
	else
		e->scale = (e->scale & 0x0f) | scale << 4;
}

/* tcp_options() for one side: without options the side keeps what it had. */
static __always_inline void tcp_take_options(struct ct_entry *e, u64 dir, u8 opts)
{
	u8 flags = e->td_flags[dir & 1] & TD_BE_LIBERAL;

	if (!(opts & TCP_OPT_PRESENT))
		return;
	if (opts & TCP_OPT_HAS_SCALE)
		flags |= TD_WINDOW_SCALE;
	if (opts & TCP_OPT_SACK_PERM)
		flags |= TD_SACK_PERM;
	e->td_flags[dir & 1] = flags;
	set_scale(e, dir, opts & TCP_OPT_SCALE_MASK);
}

/* tcp_new(): the first segment of a connection, or of one that is picked up. */
static __always_inline void tcp_open(struct ct_entry *e, const struct tcp_seg *seg)
{
	struct ct_half *sender = &e->half[DIR_ORIG];

	sender->td_end = seg->end;
	sender->td_maxwin = seg->win ? seg->win : 1;
	sender->td_maxend = seg->end;
	if (seg->class == CLASS_SYN) {
		tcp_take_options(e, DIR_ORIG, seg->opts);
	} else {
		/* history is lost: assume SACK, and do not insist on windows */
		sender->td_maxend += sender->td_maxwin;
		e->td_flags[DIR_ORIG] = TD_SACK_PERM | TD_BE_LIBERAL;
		e->td_flags[DIR_REPLY] = TD_SACK_PERM | TD_BE_LIBERAL;
	}
	e->last_index = CLASS_NONE;
	e->last_end = 0;	/* until here it means what it means for UDP */
}

/* tcp_init_sender() */
static __always_inline void tcp_init_sender(struct ct_entry *e, struct ct_half *sender, u64 dir,
					    const struct tcp_seg *seg)
{
	sender->td_end = seg->end;
	sender->td_maxend = seg->end;
	sender->td_maxwin = seg->win ? seg->win : 1;
	tcp_take_options(e, dir, seg->opts);
	/* RFC 7323, 2.2: both sides must offer scaling, else none scales */
	if (dir == DIR_REPLY && !(e->td_flags[DIR_ORIG] & e->td_flags[DIR_REPLY] & TD_WINDOW_SCALE))
		e->scale = 0;
}

/* tcp_in_window(): TCP_TRACK, TCP_IGNORE_WINDOW or TCP_BAD_WINDOW. */
static __always_inline enum tcp_verdict tcp_in_window(struct ct_entry *e, u64 dir, u64 state,
						      const struct tcp_seg *seg,
						      const struct ct_settings *set)
{
	struct ct_half *sender = &e->half[dir & 1];
	struct ct_half *receiver = &e->half[(dir ^ 1) & 1];
	u32 seq = seg->seq, end = seg->end, win = seg->win;
	u32 ack = seg->ack, sack = seg->ack, swin, ack_floor;
	bool liberal, in_recv_win;
	u64 other = (dir ^ 1) & 1;

	OPAQUE(sender);		/* else they are worked out again wherever they are used */
	OPAQUE(receiver);
	if (e->td_flags[other] & TD_SACK_PERM)
		sack = seg->sack;

	if (!sender->td_maxwin) {
		if (seg->flags & TCP_SYN) {
			tcp_init_sender(e, sender, dir, seg);
			if (!(seg->flags & TCP_ACK))
				return TCP_TRACK;	/* simultaneous open */
		} else {
			/* in the middle of a connection: take what the segment tells */
			swin = win << scale_of(e, dir);
			sender->td_end = end;
			sender->td_maxwin = swin ? swin : 1;
			sender->td_maxend = end + sender->td_maxwin;
			if (!receiver->td_maxwin) {
				receiver->td_end = sack;
				receiver->td_maxend = sack;
			} else if (sack == receiver->td_end + 1) {
				receiver->td_end++;	/* likely the answer to a keep-alive */
			}
		}
	} else if (seg->flags & TCP_SYN && after(end, sender->td_end) &&
		   (state == TCP_SYN_SENT || state == TCP_SYN_RECV)) {
		tcp_init_sender(e, sender, dir, seg);
		if (dir == DIR_REPLY && !(seg->flags & TCP_ACK))
			return TCP_TRACK;
	}

	if (!(seg->flags & TCP_ACK) || (seg->flags & TCP_RST && !ack)) {
		ack = receiver->td_end;
		sack = ack;
	}
	if (seg->flags & TCP_RST && !seq && state == TCP_SYN_SENT) {
		seq = sender->td_end;	/* a reset that answers a SYN */
		end = seq;
	}

	liberal = e->td_flags[dir & 1] & TD_BE_LIBERAL || set->knob[KNOB_TCP_BE_LIBERAL];
	ack_floor = sender->td_maxwin > TCP_MAX_ACK_WINDOW ? sender->td_maxwin : TCP_MAX_ACK_WINDOW;
	ack_floor = receiver->td_end - ack_floor - 1;
	in_recv_win = after(end, sender->td_end - receiver->td_maxwin - 1);

	/* I: the segment begins within the receiver's window */
	if (!before(seq, sender->td_maxend + 1)) {
		if (receiver->td_maxwin && in_recv_win && after(sack, ack_floor) &&
		    end - sender->td_maxend + 1 <= receiver->td_maxwin &&
		    before(sack, receiver->td_end + 1)) {
			/* more than was allowed, but the peer may well take it */
			sender->td_end = end;
			e->td_flags[dir & 1] |= TD_DATA_UNACKNOWLEDGED;
			return liberal ? TCP_TRACK : TCP_IGNORE_WINDOW;
		}
		return liberal ? TCP_TRACK : TCP_BAD_WINDOW;
	}
	/* III: it acknowledges nothing that was not sent */
	if (!before(sack, receiver->td_end + 1))
		return liberal ? TCP_TRACK : TCP_BAD_WINDOW;
	/* II and IV: it is not old */
	if ((receiver->td_maxwin && !in_recv_win) || !after(sack, ack_floor))
		return liberal ? TCP_TRACK : TCP_IGNORE_WINDOW;

	if (!(seg->flags & TCP_SYN))
		win <<= scale_of(e, dir);
	swin = win + (sack - ack);
	if (sender->td_maxwin < swin)
		sender->td_maxwin = swin;
	if (after(end, sender->td_end)) {
		sender->td_end = end;
		e->td_flags[dir & 1] |= TD_DATA_UNACKNOWLEDGED;
	}
	if (seg->flags & TCP_ACK) {
		if (!(e->td_flags[dir & 1] & TD_MAXACK_SET)) {
			sender->td_maxack = ack;
			e->td_flags[dir & 1] |= TD_MAXACK_SET;
		} else if (after(ack, sender->td_maxack)) {
			sender->td_maxack = ack;
		}
	}

	if (receiver->td_maxwin && after(end, sender->td_maxend))
		receiver->td_maxwin += end - sender->td_maxend;
	if (after(sack + win, receiver->td_maxend - 1)) {
		receiver->td_maxend = sack + win;
		if (!win)
			receiver->td_maxend++;
	}
	if (ack == receiver->td_end)
		e->td_flags[other] &= ~TD_DATA_UNACKNOWLEDGED;

	if (seg->class == CLASS_ACK) {
		if (e->last_dir == dir && e->last_seq == seq && e->last_ack == ack &&
		    e->last_end == end && e->last_win == seg->win) {
			if (e->retrans != 0xff)
				e->retrans++;
		} else {
			e->last_dir = dir;
			e->last_seq = seq;
			e->last_ack = ack;
			e->last_end = end;
			e->last_win = seg->win;
			e->retrans = 0;
		}
	}
	return TCP_TRACK;
}

/* nf_tcp_handle_invalid(): a FIN or RST out of the window in both directions ends long waits. */
static __always_inline void tcp_handle_invalid(struct ct_entry *e, u64 ctl, u64 dir, u8 class, u32 now,
					       const struct ct_settings *set)
{
	u32 left = e->expires - now, limit = set->timeout[TIMEOUT_TCP_UNACKNOWLEDGED];

	if (!(ctl & CTL_ASSURED) || (class != CLASS_RST && class != CLASS_FIN))
		return;
	if (e->last_dir != dir && (e->last_index == CLASS_FIN || e->last_index == CLASS_RST)) {
		if (left >= 120 * set->hz && left > limit)
			e->expires = now + limit;
	} else {
		e->last_index = class;
		e->last_dir = dir;
	}
}

/*
 * The SYN-ACK acknowledges a SYN that was ignored: both ends are in sync with
 * each other, we were not.  Take the annotated SYN for the connection's.
 */
static __always_inline void tcp_resync(struct ct_entry *e, u64 dir)
{
	struct ct_half *syn = &e->half[(dir ^ 1) & 1];
	struct ct_half *synack = &e->half[dir & 1];

	syn->td_end = e->last_end;
	syn->td_maxend = e->last_end;
	syn->td_maxwin = e->last_win ? e->last_win : 1;
	set_scale(e, dir ^ 1, e->last_wscale);
	e->last_flags &= ~TD_EXP_CHALLENGE_ACK;
	e->td_flags[(dir ^ 1) & 1] = e->last_flags;
	synack->td_end = 0;
	synack->td_maxend = 0;
	synack->td_maxwin = 0;
	synack->td_maxack = 0;
	set_scale(e, dir, 0);
	e->td_flags[dir & 1] &= TD_BE_LIBERAL;
}

/* Annotate a segment that is let pass: what comes back tells whether we are out of sync. */
static __always_inline void tcp_annotate(struct ct_entry *e, u64 dir, u64 state, const struct tcp_seg *seg)
{
	e->last_index = seg->class;
	e->last_dir = dir;
	e->last_seq = seg->seq;
	e->last_end = seg->end;
	e->last_win = seg->win;
	if (seg->class == CLASS_SYN && dir == DIR_ORIG) {
		e->last_flags = 0;
		e->last_wscale = 0;
		if (seg->opts & TCP_OPT_HAS_SCALE) {
			e->last_flags |= TD_WINDOW_SCALE;
			e->last_wscale = seg->opts & TCP_OPT_SCALE_MASK;
		}
		if (seg->opts & TCP_OPT_SACK_PERM)
			e->last_flags |= TD_SACK_PERM;
		/* in LAST_ACK the challenge ACK would look like the last one (RFC 5961, 4) */
		if (state == TCP_LAST_ACK)
			e->last_flags |= TD_EXP_CHALLENGE_ACK;
	}
	if (state == TCP_SYN_SENT && seg->class == CLASS_ACK && dir == DIR_REPLY)
		e->last_ack = seg->ack;
}

enum rst_check {
	RST_IN_WINDOW,	/* believed: no window check */
	RST_CHECK,	/* the window decides */
	RST_KEEP,	/* the window decides, but the state stays */
	RST_BAD,
};

/* Whether to believe a reset (RFC 5961, 3). */
static __always_inline enum rst_check tcp_check_rst(struct ct_entry *e, u64 ctl, u64 dir, u64 state,
						    const struct tcp_seg *seg,
						    const struct ct_settings *set)
{
	bool established = state == TCP_ESTABLISHED && ctl & CTL_ASSURED;
	u8 other = (dir ^ 1) & 1, last = e->last_index;
	u32 maxack = e->half[other].td_maxack;

	/* closing: the tuple may be in use again, what is known may be outdated */
	if (state >= TCP_FIN_WAIT && state <= TCP_CLOSE)
		return RST_IN_WINDOW;
	if (e->td_flags[other] & TD_MAXACK_SET && last != CLASS_SYN) {
		/* most likely the answer to a SYN that was let through */
		if (!seg->seq && !established)
			return RST_CHECK;
		if (before(seg->seq, maxack) && !set->knob[KNOB_TCP_IGNORE_INVALID_RST])
			return RST_BAD;
		if (!established || seg->seq == maxack)
			return RST_CHECK;
		/* follows the data that the same side sent just before */
		if (last == CLASS_ACK && e->last_dir == dir && seg->seq == e->last_end)
			return RST_CHECK;
		return RST_KEEP;
	}
	/* answers a SYN or an ACK that was let through: the entry is out of date */
	if (((ctl & CTL_SEEN_REPLY && last == CLASS_SYN && e->last_dir != dir) ||
	     (!(ctl & CTL_ASSURED) && last == CLASS_ACK)) && seg->ack == e->last_end)
		return RST_IN_WINDOW;
	/* answers a challenge ACK that was let through */
	if (state == TCP_SYN_SENT && last == CLASS_ACK && e->last_dir == DIR_REPLY &&
	    seg->seq == e->last_ack)
		return RST_IN_WINDOW;
	return RST_CHECK;
}

/* The timeout in jiffies of a segment that was taken. */
static __always_inline u32 tcp_timeout(struct ct_entry *e, u64 state, u8 class, const struct ct_settings *set)
{
	u32 timeout = set->timeout[state < NR_TIMEOUTS ? state : 0];
	u32 limit = timeout;

	if (e->retrans >= set->knob[KNOB_TCP_MAX_RETRANS] &&
	    timeout > set->timeout[TIMEOUT_TCP_MAX_RETRANS])
		limit = set->timeout[TIMEOUT_TCP_MAX_RETRANS];
	else if (class == CLASS_RST)
		limit = set->timeout[TIMEOUT_TCP_CLOSE];
	else if ((e->td_flags[0] | e->td_flags[1]) & TD_DATA_UNACKNOWLEDGED &&
		 timeout > set->timeout[TIMEOUT_TCP_UNACKNOWLEDGED])
		limit = set->timeout[TIMEOUT_TCP_UNACKNOWLEDGED];
	else if (!e->last_win && timeout > set->timeout[TIMEOUT_TCP_MAX_RETRANS])
		limit = set->timeout[TIMEOUT_TCP_MAX_RETRANS];
	return limit;
}

/*
 * One segment of a known connection, or the first one after tcp_open().
 * Changes the entry, *ctl and, when the segment counts, *timeout.
 */
static __always_inline enum tcp_verdict tcp_track(struct ct_entry *e, u64 *ctl, u64 dir,
						  const struct tcp_seg *seg, u32 now,
						  const struct ct_settings *set, u32 *timeout)
{
	u64 old = *ctl & CTL_STATE, state = tcp_next_state(set, dir, seg->class, old);
	bool check_window = true;
	enum tcp_verdict verdict;

	if (state == TCP_SYN_SENT && old >= TCP_TIME_WAIT) {
		if ((e->td_flags[0] | e->td_flags[1]) & TD_CLOSE_INIT ||
		    (e->last_dir == dir && e->last_index == CLASS_RST))
			return TCP_REOPEN;
		state = TCP_IGNORE;
	}
	switch (state) {
	case TCP_INVALID:
		return TCP_BAD_STATE;
	case TCP_IGNORE:
		if (seg->class == CLASS_SYNACK && e->last_index == CLASS_SYN &&
		    e->last_dir != dir && seg->ack == e->last_end) {
			tcp_resync(e, dir);
			old = TCP_SYN_SENT;
			state = TCP_SYN_RECV;
			break;
		}
		tcp_annotate(e, dir, old, seg);
		return TCP_IGNORE_STATE;
	case TCP_TIME_WAIT:
		if (old == TCP_LAST_ACK && seg->class == CLASS_ACK && e->last_dir != dir &&
		    e->last_index == CLASS_SYN && e->last_flags & TD_EXP_CHALLENGE_ACK) {
			e->last_flags &= ~TD_EXP_CHALLENGE_ACK;
			return TCP_IGNORE_STATE;
		}
		break;
	case TCP_SYN_SENT2:
		e->last_flags |= TD_SIMULTANEOUS_OPEN;
		break;
	case TCP_SYN_RECV:
		if (dir == DIR_REPLY && seg->class == CLASS_ACK && e->last_flags & TD_SIMULTANEOUS_OPEN)
			state = TCP_ESTABLISHED;
		break;
	case TCP_CLOSE:
		if (seg->class != CLASS_RST)
			break;
		switch (tcp_check_rst(e, *ctl, dir, old, seg, set)) {
		case RST_BAD:
			return TCP_BAD_RST;
		case RST_KEEP:
			state = old;
			break;
		case RST_IN_WINDOW:
			check_window = false;
			break;
		case RST_CHECK:
			break;
		}
		break;
	}

	if (check_window) {
		verdict = tcp_in_window(e, dir, *ctl & CTL_STATE, seg, set);
		if (verdict == TCP_BAD_WINDOW)
			tcp_handle_invalid(e, *ctl, dir, seg->class, now, set);
		if (verdict != TCP_TRACK)
			return verdict;
	}

	e->last_index = seg->class;
	e->last_dir = dir;
	*ctl = (*ctl & ~CTL_STATE) | state;
	if (old != state && state == TCP_FIN_WAIT)
		e->td_flags[dir & 1] |= TD_CLOSE_INIT;
	*timeout = tcp_timeout(e, state, seg->class, set);

	if (!(*ctl & CTL_SEEN_REPLY)) {
		if (seg->flags & TCP_RST)
			return TCP_TRACK_AND_KILL;
		if (seg->class == CLASS_SYN && old == TCP_SYN_SENT)
			return TCP_RETRANSMIT_SYN;
		if (state == TCP_ESTABLISHED && *timeout > set->timeout[TIMEOUT_TCP_UNACKNOWLEDGED])
			*timeout = set->timeout[TIMEOUT_TCP_UNACKNOWLEDGED];
	} else if (!(*ctl & CTL_ASSURED) && state == TCP_ESTABLISHED &&
		   (old == TCP_SYN_RECV || old == TCP_ESTABLISHED)) {
		*ctl |= CTL_ASSURED;
	}
	return TCP_TRACK;
}
