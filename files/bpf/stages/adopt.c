// SPDX-License-Identifier: GPL-2.0-only
/*
 * No stage: user space runs it, to change what packets change at the same time.
 * The frame is a request: which family's flows are to be moved here, and their
 * keys; or what another generation counted; or, where there are events, keys of
 * flows that an operator deletes, so that it is told.
 */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "templates/maps.h.j2"
#include "lib/packet.h"
#include "templates/events.h.j2"
#include "lib/entry.h"
#include "lib/inherit.h"
#include "templates/erase.h.j2"

struct adopt_request {
	u32 what;	/* enum ct_adopt */
	u32 items;
	u64 assured;	/* ADOPT_ERASE_*: whether the flows stand in the table of assured ones */
};

static __always_inline u32 later(u32 a, u32 b)
{
	return (s32)(a - b) > 0 ? a : b;
}

/* Add what the same side sent elsewhere.  Of the rest holds what is further on. */
static __always_inline void half_add(struct ct_half *to, const struct ct_half *from, u8 proto)
{
	to->packets += from->packets;
	to->bytes += from->bytes;
	if (proto != IPPROTO_TCP)
		return;
	to->td_end = later(to->td_end, from->td_end);
	to->td_maxend = later(to->td_maxend, from->td_maxend);
	to->td_maxack = later(to->td_maxack, from->td_maxack);
	/* neither saw all: the next segment begins a window anew, see flow_offload_fixup_tcp() */
	to->td_maxwin = 0;
}

/* How far on a TCP state is: by its number, but for the last one. */
static __always_inline u32 tcp_rank(u64 ctl)
{
	u32 state = ctl & CTL_STATE;

	return state == TCP_SYN_SENT2 ? TCP_SYN_SENT : state;
}

/*
 * Both tables have the flow: it went on there after it was taken over, or began
 * there without being known.  Both are locked, and this one is to have all.
 */
static __always_inline void entry_merge(struct ct_entry *e, u64 *ctl, const struct ct_entry *old, u64 old_ctl,
					u8 proto, const struct ct_settings *set)
{
	u32 turned = (*ctl ^ old_ctl) / CTL_ORIG_HI & 1, state = old_ctl & CTL_STATE;

	/* began anew since */
	if ((s32)(e->created - old->created) > 0)
		return;
	half_add(&e->half[0], &old->half[turned], proto);
	half_add(&e->half[1], &old->half[turned ^ 1], proto);
	__sync_fetch_and_add(&e->rel_packets, old->rel_packets);
	__sync_fetch_and_add(&e->rel_bytes, old->rel_bytes);
	*ctl |= old_ctl & (CTL_SEEN_REPLY | CTL_ASSURED);
	if (turned)
		*ctl |= CTL_SEEN_REPLY;
	if (proto == IPPROTO_TCP) {
		if (tcp_rank(old_ctl) > tcp_rank(*ctl)) {
			*ctl = (*ctl & ~CTL_STATE) | state;
			e->expires = later(e->last_seen, old->last_seen) + set->timeout[state];
		}
	} else if ((s32)(old->last_seen - e->last_seen) > 0) {
		*ctl = (*ctl & ~CTL_STATE) | state;
		e->expires = old->expires;
	}
	e->last_seen = later(e->last_seen, old->last_seen);
}

/* Move one flow here; 1 where it could not be moved now. */
static __always_inline u32 adopt_flow(union any_key *key, u32 now, const struct ct_settings *set, const bool v6)
{
	u8 proto = v6 ? key->v6.proto : key->v4.proto;
	struct ct_entry *old, *e;
	bool assured, dummy;
	u64 ctl, old_ctl;

	old = pred_find(key, v6, &assured);
	if (!old)
		return 0;
	if (!ctl_try_lock(&old->ctl, &old_ctl))
		return 1;
	if (entry_over(old, now, set)) {
		count(COUNT_DELETED_EXPIRED);
		if (assured)
			count(COUNT_ASSURED_DELETED);
		event_tell(EVENT_DESTROY, COUNT_DELETED_EXPIRED, old, old_ctl, key, v6);
	} else if (entry_find(key, v6, &dummy) || pred_copy(old, key, old_ctl, v6, assured)) {
		/* here it may be among the assured flows, while there it began anew */
		e = entry_find(key, v6, &dummy);
		if (!e || !ctl_try_lock(&e->ctl, &ctl)) {
			ctl_unlock(&old->ctl, old_ctl);
			return 1;
		}
		entry_merge(e, &ctl, old, old_ctl, proto, set);
		ctl_unlock(&e->ctl, ctl);
	}
	old->expires = now;
	pred_delete(key, v6, assured);
	return 0;
}

/* Add what another generation counted, once. */
static __always_inline u32 adopt_counts(struct xdp_md *ctx, u32 items)
{
	u64 *done = meta_at(META_COUNTED), *n, *number;
	u32 i;

	if (!done)
		return items;
	if (__sync_val_compare_and_swap(done, 0, 1))
		return 0;
#pragma clang loop unroll(disable)
	for (i = 0; i < NR_COUNTS; i++) {
		OPAQUE(i);
		number = frame_at(ctx, sizeof(struct adopt_request) + i * sizeof(*number), sizeof(*number));
		n = stats_at(i);
		if (number && n && i < items)
			__sync_fetch_and_add(n, *number);
	}
	return 0;
}

PROG(adopt)
{
	struct adopt_request *request = frame_at(ctx, 0, sizeof(*request));
	const struct ct_settings *set = settings_now();
	u32 now = bpf_jiffies64(), left = 0, items, what, i;
	union any_key key;
	void *item;

	if (!request || !set)
		return -1;
	items = request->items;
	what = request->what;
	if (what == ADOPT_COUNTS)
		return adopt_counts(ctx, items);
#if EVENTS
	if (what == ADOPT_ERASE_IPV4)
		return erase_flows(ctx, sizeof(*request), items, now, set, request->assured, false);
	if (what == ADOPT_ERASE_IPV6)
		return erase_flows(ctx, sizeof(*request), items, now, set, request->assured, true);
#endif
#pragma clang loop unroll(disable)
	for (i = 0; i < ADOPT_KEYS; i++) {
		OPAQUE(i);
		if (i >= items)
			break;
		if (what == ADOPT_IPV4) {
			item = payload_at(ctx, sizeof(*request) + i * sizeof(key.v4), sizeof(key.v4));
			if (!item)
				break;
			key.v4 = *(struct ct_key *)item;
			left += adopt_flow(&key, now, set, false);
		} else {
			item = payload_at(ctx, sizeof(*request) + i * sizeof(key.v6), sizeof(key.v6));
			if (!item)
				break;
			key.v6 = *(struct ct_key6 *)item;
			left += adopt_flow(&key, now, set, true);
		}
	}
	return left;
}
