// SPDX-License-Identifier: GPL-2.0-only
/* Slot 3: finds or makes the packet's flow and moves it on. */

/* What the trackers decide: which outcome is counted, and what becomes of the entry. */
struct ct_result {
	u32 outcome;	/* enum ct_count */
	u32 timeout;	/* jiffies, when the packet is tracked */
	bool reopen;	/* the entry starts over with this packet */
	bool kill;
	bool keep_timeout;
};

/* Whether the packet may open a flow; where not, why. */
static __always_inline u32 ct_may_open(const struct flow *f, const struct ct_settings *set)
{
	u8 class;

	switch (f->proto) {
	case IPPROTO_TCP:
		class = tcp_class(f->tcp_flags);
		if (class == CLASS_SYN || (class == CLASS_ACK && set->knob[KNOB_TCP_LOOSE]))
			return COUNT_TRACKED;
		return COUNT_INVALID_TCP_NEW;
	case IPPROTO_ICMP:
		return f->bits & FLOW_QUERY ? COUNT_TRACKED : COUNT_INVALID_ICMP_TYPE;
	default:
		return COUNT_TRACKED;
	}
}

static __always_inline bool tcp_read(struct xdp_md *ctx, const struct flow *f, struct tcp_seg *seg)
{
	struct tcphdr *tcp = frame_at(ctx, f->l4_off, sizeof(*tcp));

	if (!tcp)
		return false;
	seg->seq = bpf_ntohl(tcp->seq);
	seg->ack = bpf_ntohl(tcp->ack_seq);
	seg->sack = f->tcp_sack;
	seg->win = bpf_ntohs(tcp->window);
	seg->flags = f->tcp_flags;
	seg->class = tcp_class(f->tcp_flags);
	seg->opts = f->tcp_opts;
	seg->end = seg->seq + f->bytes - (f->l4_off - f->l3_off) - tcp->doff * 4 +
		   (f->tcp_flags & TCP_SYN ? 1 : 0) + (f->tcp_flags & TCP_FIN ? 1 : 0);
	return true;
}

static __always_inline void ct_tcp(struct ct_entry *e, u64 *ctl, u8 dir, const struct tcp_seg *seg,
				   u32 now, const struct ct_settings *set, struct ct_result *res)
{
	if ((*ctl & CTL_STATE) == TCP_NONE)
		tcp_open(e, seg);
	switch (tcp_track(e, ctl, dir, seg, now, set, &res->timeout)) {
	case TCP_TRACK:
		break;
	case TCP_TRACK_AND_KILL:
		res->kill = true;
		break;
	case TCP_REOPEN:
		res->reopen = true;
		break;
	case TCP_RETRANSMIT_SYN:
		res->outcome = COUNT_IGNORED_TCP_SYN;
		break;
	case TCP_IGNORE_STATE:
		res->outcome = COUNT_IGNORED_TCP_STATE;
		break;
	case TCP_IGNORE_WINDOW:
		res->outcome = COUNT_IGNORED_TCP_WINDOW;
		break;
	case TCP_BAD_STATE:
		res->outcome = COUNT_INVALID_TCP_STATE;
		break;
	case TCP_BAD_WINDOW:
		res->outcome = COUNT_INVALID_TCP_WINDOW;
		break;
	case TCP_BAD_RST:
		res->outcome = COUNT_INVALID_TCP_RST;
		break;
	}
}

/* nf_conntrack_udp_packet(): a stream once there was traffic both ways beyond two seconds. */
static __always_inline void ct_udp(struct ct_entry *e, u64 *ctl, u32 now, const struct ct_settings *set,
				   struct ct_result *res)
{
	res->timeout = set->timeout[TIMEOUT_UDP];
	if (!(*ctl & CTL_SEEN_REPLY) || (s32)(now - e->last_end) <= 0)
		return;
	res->timeout = set->timeout[TIMEOUT_UDP_STREAM];
	*ctl |= CTL_ASSURED;
}

/* Begin the flow anew with this packet; the entry is locked. */
static __always_inline void entry_begin(struct ct_entry *e, u64 jiffies, const struct ct_settings *set)
{
	__builtin_memset(e->half, 0, sizeof(e->half));
	__builtin_memset(&e->expires, 0, sizeof(*e) - offsetof(struct ct_entry, expires));
	e->created = jiffies / set->hz;
	e->last_end = (u32)jiffies + STREAM_SECONDS * set->hz;
}

/*
 * Return the packet's entry, locked, made if need be; its state is TCP_NONE and
 * its counters 0 when it begins with this packet.  NULL: *why is the outcome.
 */
static __always_inline struct ct_entry *entry_get(const struct flow *f, struct ct_key *key, bool src_hi,
						  u64 jiffies, const struct ct_settings *set,
						  u64 *ctl, u32 *why)
{
	struct ct_entry *e = ctt_lookup(key), blank;
	u32 open;

	if (!e) {
		*why = ct_may_open(f, set);
		if (*why != COUNT_TRACKED)
			return NULL;
		__builtin_memset(&blank, 0, sizeof(blank));
		blank.ctl = ctl_new(f, src_hi) | CTL_LOCK;
		blank.created = jiffies / set->hz;
		blank.expires = (u32)jiffies + set->hz;
		blank.last_end = (u32)jiffies + STREAM_SECONDS * set->hz;
		if (!ctt_create(key, &blank)) {
			e = ctt_lookup(key);
			if (e) {
				*ctl = blank.ctl & ~CTL_LOCK;
				count(COUNT_CREATED);
				return e;
			}
		} else {
			e = ctt_lookup(key);	/* another CPU was first, or the table is full */
		}
		if (!e) {
			count(COUNT_INSERT_FAILED);
			*why = COUNT_UNTRACKED_NO_ENTRY;
			return NULL;
		}
	}
	if (!entry_lock(e, ctl)) {
		*why = COUNT_UNTRACKED_CONTENDED;
		return NULL;
	}
	if (!entry_expired(e, jiffies))
		return e;
	count(COUNT_DELETED_EXPIRED);
	open = ct_may_open(f, set);
	if (open != COUNT_TRACKED) {
		/* stays locked: nobody may write into what is given back */
		ctt_delete(key);
		*why = open;
		return NULL;
	}
	entry_begin(e, jiffies, set);
	*ctl = ctl_new(f, src_hi);
	count(COUNT_CREATED);
	return e;
}

static __always_inline u32 ct_related(struct flow *f, struct ct_key *key, u32 now)
{
	struct ct_entry *e = ctt_lookup(key);

	if (!e || entry_expired(e, now))
		return COUNT_INVALID_ICMP_ERROR;
	__sync_fetch_and_add(&e->rel_packets, 1);
	__sync_fetch_and_add(&e->rel_bytes, f->bytes);
	return COUNT_RELATED;
}

static __always_inline u8 ct_dir(const struct flow *f, u64 ctl, bool src_hi)
{
	if (f->bits & FLOW_ANSWER)
		return DIR_REPLY;
	if (f->bits & FLOW_QUERY)
		return DIR_ORIG;
	return src_hi == !!(ctl & CTL_ORIG_HI) ? DIR_ORIG : DIR_REPLY;
}

PROG(ct)
{
	struct ct_result res = { .outcome = COUNT_TRACKED };
	const struct ct_settings *set = settings_now();
	struct flow *f = flow_of(ctx);
	u64 jiffies = bpf_jiffies64(), ctl;
	u32 now = jiffies, why;
	struct tcp_seg seg = {};
	struct ct_half *half;
	struct ct_entry *e;
	struct ct_key key;
	bool src_hi;
	u8 dir;

	if (!f || !set)
		return XDP_PASS;
	src_hi = ct_key_of(f, &key);
	if (f->bits & FLOW_RELATED)
		return outcome(ctx, ct_related(f, &key, now));
	if (f->proto == IPPROTO_TCP && !tcp_read(ctx, f, &seg))
		return outcome(ctx, COUNT_INVALID_L4_SHORT);
	e = entry_get(f, &key, src_hi, jiffies, set, &ctl, &why);
	if (!e)
		return outcome(ctx, why);
	dir = ct_dir(f, ctl, src_hi);

	switch (f->proto) {
	case IPPROTO_TCP:
		ct_tcp(e, &ctl, dir, &seg, now, set, &res);
		if (res.reopen) {
			count(COUNT_REOPENED);
			entry_begin(e, jiffies, set);
			ctl = ctl_new(f, src_hi);
			dir = DIR_ORIG;
			ct_tcp(e, &ctl, dir, &seg, now, set, &res);
		}
		break;
	case IPPROTO_UDP:
		ct_udp(e, &ctl, now, set, &res);
		break;
	default:
		res.timeout = set->timeout[TIMEOUT_ICMP];
	}

	if (res.outcome == COUNT_TRACKED) {
		half = &e->half[dir & 1];
		half->packets++;
		half->bytes += f->bytes;
		e->expires = now + res.timeout;
		e->last_seen = now;
	}
	/* the kernel sets this for packets that it ignores, too */
	if (dir == DIR_REPLY && (res.outcome == COUNT_TRACKED || res.outcome == COUNT_IGNORED_TCP_STATE ||
				 res.outcome == COUNT_IGNORED_TCP_WINDOW))
		ctl |= CTL_SEEN_REPLY;
	if (res.kill) {
		ctt_delete(&key);	/* stays locked */
		count(COUNT_DELETED_RESET);
	} else {
		entry_unlock(e, ctl);
	}
	return outcome(ctx, res.outcome);
}
