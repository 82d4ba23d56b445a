// SPDX-License-Identifier: GPL-2.0-only
/*
 * Taking flows over from other tables: those of the generation before this one,
 * or after it, while both are attached.  Each flow stands in one table at any
 * time; who meets a packet of it moves it to its own.
 */

#include "lib/base.h"
#include "templates/defs.h.j2"
#include "lib/flow.h"
#include "templates/maps.h.j2"
#include "lib/packet.h"
#include "lib/entry.h"

static __always_inline struct ct_entry *pred_lookup(union any_key *key, const bool v6, const u32 which)
{
	void *table = v6 ? pred6_at(which) : pred_at(which);

	return table ? bpf_map_lookup_elem_((u64)table, key) : NULL;
}

static __always_inline void pred_delete(union any_key *key, const bool v6, bool assured)
{
	u32 which = assured ? PRED_ASSURED : PRED_HALF_OPEN;
	void *table = v6 ? pred6_at(which) : pred_at(which);

	if (table)
		bpf_map_delete_elem_((u64)table, key);
}

/* Find the flow where it was before.  In the table of assured flows it is looked for last, as it moves that way. */
static __always_inline struct ct_entry *pred_find(union any_key *key, const bool v6, bool *assured)
{
	struct ct_entry *old = pred_lookup(key, v6, PRED_HALF_OPEN);

	*assured = !old;
	return old ? old : pred_lookup(key, v6, PRED_ASSURED);
}

/*
 * Copy the entry, which is locked, to the table where it belongs here.  What
 * began anew in the place of an assured flow stays among those.
 */
static __always_inline int pred_copy(const struct ct_entry *old, union any_key *key, u64 ctl, const bool v6, bool assured)
{
	struct ct_entry copy = *old;
	bool to_assured = assured || ctl & CTL_ASSURED;
	int err;

	copy.ctl = ctl;
	err = table_create(key, &copy, v6, to_assured);
	if (!err && to_assured && !assured)
		count(COUNT_PROMOTED);
	return err;
}

/*
 * Move the packet's flow here; true where it is here now.  The old entry stays
 * locked when it is deleted, so who found it there looks again.
 */
static __always_inline bool entry_inherit(union any_key *key, u32 now, const struct ct_settings *set,
					  const bool v6)
{
	struct ct_entry *old;
	bool assured;
	u64 ctl;
	u32 try;

#pragma clang loop unroll(disable)
	for (try = 0; try < FIND_TRIES; try++) {
		OPAQUE(try);
		old = pred_find(key, v6, &assured);
		if (!old)
			return try;	/* somebody else moved it meanwhile */
		if (ctl_try_lock(&old->ctl, &ctl))
			break;
		old = NULL;
	}
	if (!old)
		return true;
	/* what is over stays there, to be counted when all is moved */
	if (entry_over(old, now, set)) {
		ctl_unlock(&old->ctl, ctl);
		return false;
	}
	if (pred_copy(old, key, ctl, v6, assured)) {
		ctl_unlock(&old->ctl, ctl);
		return true;
	}
	old->expires = now;
	pred_delete(key, v6, assured);
	return true;
}
