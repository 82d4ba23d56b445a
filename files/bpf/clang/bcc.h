/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What bcc gives to the programs that it compiles, for clang: read in front of
 * the rendered chain, whose text is the same for both.
 *
 * A map is two things here.  What libbpf makes of it lies in the section .maps,
 * under its name and MAP_SUFFIX.  Under its name alone there is a constant with
 * one function for each of its methods; the compiler knows which, and so nothing
 * is left of it but the calls of helpers.  Where the text says that a map has a
 * pin, nothing is done about it: who loads the object knows the pins.
 */
#ifndef CT_CLANG_BCC_H
#define CT_CLANG_BCC_H

#include <linux/kconfig.h>
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define PROG(name) SEC("xdp") int name(struct xdp_md *ctx)
#define BPF_LICENSE(licence) char _license[] SEC("license") = #licence

BPF_LICENSE(GPL);

/* ------------------------------------------------------------ helpers */
#define HELPER(type, name, number, ...) static type (*name)(__VA_ARGS__) __attribute__((unused)) = (void *)BPF_FUNC_##number

/* Those of maps have the names that bcc's own methods leave free. */
HELPER(void *, ct_map_lookup, map_lookup_elem, const void *map, const void *key);
HELPER(long, ct_map_update, map_update_elem, const void *map, const void *key, const void *value, u64 flags);
HELPER(long, ct_map_delete, map_delete_elem, const void *map, const void *key);
HELPER(long, ct_map_tail_call, tail_call, void *ctx, const void *map, u32 index);
HELPER(long, ct_map_redirect, redirect_map, const void *map, u64 key, u64 flags);
HELPER(long, ct_map_perf_output, perf_event_output, void *ctx, const void *map, u64 flags, const void *data, u64 size);
HELPER(long, ct_map_ringbuf_output, ringbuf_output, const void *map, const void *data, u64 size, u64 flags);
HELPER(void *, ct_map_ringbuf_reserve, ringbuf_reserve, const void *map, u64 size, u64 flags);
HELPER(u64, ct_map_ringbuf_query, ringbuf_query, const void *map, u64 flags);
HELPER(void, ct_ringbuf_submit, ringbuf_submit, void *data, u64 flags);
HELPER(void, ct_ringbuf_discard, ringbuf_discard, void *data, u64 flags);
HELPER(long, ct_trace_printk, trace_printk, const char *format, u32 size, ...);

/* What the methods of bcc's maps become, for maps that are found in maps. */
#define bpf_map_lookup_elem_(map, key) ct_map_lookup((void *)(map), key)
#define bpf_map_update_elem_(map, key, value, flags) ct_map_update((void *)(map), key, value, flags)
#define bpf_map_delete_elem_(map, key) ct_map_delete((void *)(map), key)

/* All others that an XDP program may call, under their own names. */
HELPER(u64, bpf_ktime_get_ns, ktime_get_ns, void);
HELPER(u64, bpf_ktime_get_boot_ns, ktime_get_boot_ns, void);
HELPER(u64, ct_jiffies64, jiffies64, void);
HELPER(u32, bpf_get_prandom_u32, get_prandom_u32, void);
HELPER(u32, bpf_get_smp_processor_id, get_smp_processor_id, void);
HELPER(long, bpf_get_numa_node_id, get_numa_node_id, void);
HELPER(s64, bpf_csum_diff, csum_diff, __be32 *from, u32 from_size, __be32 *to, u32 to_size, __wsum seed);
HELPER(long, bpf_redirect, redirect, u32 ifindex, u64 flags);
HELPER(long, bpf_xdp_adjust_head, xdp_adjust_head, struct xdp_md *ctx, int delta);
HELPER(long, bpf_xdp_adjust_meta, xdp_adjust_meta, struct xdp_md *ctx, int delta);
HELPER(long, bpf_xdp_adjust_tail, xdp_adjust_tail, struct xdp_md *ctx, int delta);
HELPER(long, bpf_fib_lookup, fib_lookup, void *ctx, struct bpf_fib_lookup *params, int size, u32 flags);
HELPER(long, bpf_check_mtu, check_mtu, void *ctx, u32 ifindex, u32 *mtu, s32 length, u64 flags);
HELPER(long, bpf_spin_lock, spin_lock, struct bpf_spin_lock *lock);
HELPER(long, bpf_spin_unlock, spin_unlock, struct bpf_spin_lock *lock);

#define bpf_trace_printk(text, ...)							\
	({										\
		char format[] = text;							\
		ct_trace_printk(format, sizeof(format), ##__VA_ARGS__);			\
	})

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define CT_SWAP(bits, x) __builtin_bswap##bits(x)
#else
#define CT_SWAP(bits, x) (x)
#endif
#define bpf_htons(x) ((__be16)CT_SWAP(16, x))
#define bpf_ntohs(x) ((__u16)CT_SWAP(16, x))
#define bpf_htonl(x) ((__be32)CT_SWAP(32, x))
#define bpf_ntohl(x) ((__u32)CT_SWAP(32, x))
#define bpf_cpu_to_be64(x) ((__be64)CT_SWAP(64, x))
#define bpf_be64_to_cpu(x) ((__u64)CT_SWAP(64, x))
#define lock_xadd(at, amount) ((void)__sync_fetch_and_add(at, amount))

/* ------------------------------------------------------------ maps */
/* bcc's names of the kinds; an array of maps has the name of the map whose like it holds behind them. */
#define CT_SAME(a, b) (!__builtin_strcmp(a, b))
#define CT_KIND(kind)									\
	(CT_SAME(kind, "hash") ? BPF_MAP_TYPE_HASH :					\
	 CT_SAME(kind, "array") ? BPF_MAP_TYPE_ARRAY :					\
	 CT_SAME(kind, "prog") ? BPF_MAP_TYPE_PROG_ARRAY :				\
	 CT_SAME(kind, "perf_output") ? BPF_MAP_TYPE_PERF_EVENT_ARRAY :			\
	 CT_SAME(kind, "percpu_hash") ? BPF_MAP_TYPE_PERCPU_HASH :			\
	 CT_SAME(kind, "percpu_array") ? BPF_MAP_TYPE_PERCPU_ARRAY :			\
	 CT_SAME(kind, "lru_hash") ? BPF_MAP_TYPE_LRU_HASH :				\
	 CT_SAME(kind, "lru_percpu_hash") ? BPF_MAP_TYPE_LRU_PERCPU_HASH :		\
	 CT_SAME(kind, "lpm_trie") ? BPF_MAP_TYPE_LPM_TRIE :				\
	 CT_SAME(kind, "devmap") ? BPF_MAP_TYPE_DEVMAP :				\
	 CT_SAME(kind, "cpumap") ? BPF_MAP_TYPE_CPUMAP :				\
	 CT_SAME(kind, "xskmap") ? BPF_MAP_TYPE_XSKMAP :				\
	 !__builtin_strncmp(kind, "array_of_maps$", 14) ? BPF_MAP_TYPE_ARRAY_OF_MAPS :	\
	 !__builtin_strncmp(kind, "hash_of_maps$", 13) ? BPF_MAP_TYPE_HASH_OF_MAPS : -1)

#define CT_METHOD static __always_inline __attribute__((unused))

#define BPF_F_TABLE(kind, key_type, leaf_type, name, entries, bits)			\
enum { name##_ct_kind = CT_KIND(kind) };						\
struct {										\
	int (*type)[name##_ct_kind];							\
	int (*key_size)[sizeof(key_type)];						\
	int (*value_size)[sizeof(leaf_type)];						\
	int (*max_entries)[entries];							\
	int (*map_flags)[bits];							\
} name##_ct_map SEC(".maps");								\
CT_METHOD leaf_type *name##_ct_lookup(key_type *key)					\
{											\
	return ct_map_lookup(&name##_ct_map, key);					\
}											\
CT_METHOD int name##_ct_update(key_type *key, leaf_type *leaf)				\
{											\
	return ct_map_update(&name##_ct_map, key, leaf, BPF_ANY);			\
}											\
CT_METHOD int name##_ct_insert(key_type *key, leaf_type *leaf)				\
{											\
	return ct_map_update(&name##_ct_map, key, leaf, BPF_NOEXIST);			\
}											\
CT_METHOD int name##_ct_delete(key_type *key)						\
{											\
	return ct_map_delete(&name##_ct_map, key);					\
}											\
CT_METHOD leaf_type *name##_ct_init(key_type *key, leaf_type *leaf)			\
{											\
	leaf_type *found = ct_map_lookup(&name##_ct_map, key);				\
											\
	if (!found) {									\
		ct_map_update(&name##_ct_map, key, leaf, BPF_NOEXIST);			\
		found = ct_map_lookup(&name##_ct_map, key);				\
	}										\
	return found;									\
}											\
CT_METHOD void name##_ct_call(void *ctx, u32 index)					\
{											\
	ct_map_tail_call(ctx, &name##_ct_map, index);					\
}											\
CT_METHOD int name##_ct_redirect(u64 key, u64 flags)					\
{											\
	return ct_map_redirect(&name##_ct_map, key, flags);				\
}											\
CT_METHOD int name##_ct_perf_submit(void *ctx, void *data, u32 size)			\
{											\
	return ct_map_perf_output(ctx, &name##_ct_map, BPF_F_CURRENT_CPU, data, size);	\
}											\
static const struct {									\
	leaf_type *(*lookup)(key_type *key);						\
	leaf_type *(*lookup_or_init)(key_type *key, leaf_type *leaf);			\
	leaf_type *(*lookup_or_try_init)(key_type *key, leaf_type *leaf);		\
	int (*update)(key_type *key, leaf_type *leaf);					\
	int (*insert)(key_type *key, leaf_type *leaf);					\
	int (*delete)(key_type *key);							\
	void (*call)(void *ctx, u32 index);						\
	int (*redirect_map)(u64 key, u64 flags);					\
	int (*perf_submit)(void *ctx, void *data, u32 size);				\
} name __attribute__((unused)) = {							\
	name##_ct_lookup, name##_ct_init, name##_ct_init, name##_ct_update,		\
	name##_ct_insert, name##_ct_delete, name##_ct_call, name##_ct_redirect,		\
	name##_ct_perf_submit,								\
}

#define BPF_TABLE(kind, key_type, leaf_type, name, entries) BPF_F_TABLE(kind, key_type, leaf_type, name, entries, 0)
#define CT_TABLE_PINNED(kind, key_type, leaf_type, name, entries, pin, bits, ...)	\
	BPF_F_TABLE(kind, key_type, leaf_type, name, entries, bits)
#define BPF_TABLE_PINNED(...) CT_TABLE_PINNED(__VA_ARGS__, 0, 0)

/* bcc's short forms take what is left out for granted. */
#define CT_HASH(kind, name, key_type, leaf_type, entries, ...) BPF_TABLE(kind, key_type, leaf_type, name, entries)
#define CT_HASH1(kind, name) CT_HASH(kind, name, u64, u64, 10240)
#define CT_HASH2(kind, name, key_type) CT_HASH(kind, name, key_type, u64, 10240)
#define CT_HASH3(kind, name, key_type, leaf_type) CT_HASH(kind, name, key_type, leaf_type, 10240)
#define CT_HASH4(kind, name, key_type, leaf_type, entries) CT_HASH(kind, name, key_type, leaf_type, entries)
#define CT_ARRAY2(kind, name, leaf_type) BPF_TABLE(kind, int, leaf_type, name, 10240)
#define CT_ARRAY3(kind, name, leaf_type, entries) BPF_TABLE(kind, int, leaf_type, name, entries)
#define CT_ARRAY1(kind, name) CT_ARRAY2(kind, name, u64)
#define CT_PICK(a, b, c, d, macro, ...) macro
#define BPF_HASH(...) CT_PICK(__VA_ARGS__, CT_HASH4, CT_HASH3, CT_HASH2, CT_HASH1)("hash", __VA_ARGS__)
#define BPF_PERCPU_HASH(...) CT_PICK(__VA_ARGS__, CT_HASH4, CT_HASH3, CT_HASH2, CT_HASH1)("percpu_hash", __VA_ARGS__)
#define BPF_ARRAY(...) CT_PICK(__VA_ARGS__, , CT_ARRAY3, CT_ARRAY2, CT_ARRAY1)("array", __VA_ARGS__)
#define BPF_PERCPU_ARRAY(...) CT_PICK(__VA_ARGS__, , CT_ARRAY3, CT_ARRAY2, CT_ARRAY1)("percpu_array", __VA_ARGS__)
#define BPF_PROG_ARRAY(name, entries) BPF_TABLE("prog", u32, u32, name, entries)
#define BPF_DEVMAP(name, entries) BPF_TABLE("devmap", u32, int, name, entries)
#define BPF_CPUMAP(name, entries) BPF_TABLE("cpumap", u32, u32, name, entries)
#define BPF_XSKMAP(name, entries) BPF_TABLE("xskmap", u32, u32, name, entries)
#define BPF_PERF_OUTPUT(name) BPF_TABLE("perf_output", int, u32, name, 0)

#define CT_RING(name, bytes)								\
struct {										\
	int (*type)[BPF_MAP_TYPE_RINGBUF];						\
	int (*max_entries)[bytes];							\
} name##_ct_map SEC(".maps");								\
CT_METHOD void *name##_ct_reserve(u64 size)						\
{											\
	return ct_map_ringbuf_reserve(&name##_ct_map, size, 0);				\
}											\
CT_METHOD int name##_ct_output(void *data, u64 size, u64 flags)				\
{											\
	return ct_map_ringbuf_output(&name##_ct_map, data, size, flags);		\
}											\
CT_METHOD u64 name##_ct_query(u64 flags)						\
{											\
	return ct_map_ringbuf_query(&name##_ct_map, flags);				\
}											\
CT_METHOD void name##_ct_submit(void *data, u64 flags)					\
{											\
	ct_ringbuf_submit(data, flags);							\
}											\
CT_METHOD void name##_ct_discard(void *data, u64 flags)					\
{											\
	ct_ringbuf_discard(data, flags);						\
}											\
static const struct {									\
	void *(*ringbuf_reserve)(u64 size);						\
	int (*ringbuf_output)(void *data, u64 size, u64 flags);				\
	u64 (*ringbuf_query)(u64 flags);						\
	void (*ringbuf_submit)(void *data, u64 flags);					\
	void (*ringbuf_discard)(void *data, u64 flags);					\
} name __attribute__((unused)) = {							\
	name##_ct_reserve, name##_ct_output, name##_ct_query, name##_ct_submit,		\
	name##_ct_discard,								\
}
#define EVENT_RING(name, bytes, pin) CT_RING(name, bytes)
#define BPF_RINGBUF_OUTPUT(name, pages) CT_RING(name, (pages) * PAGE_SIZE)

/* ------------------------------------------------------------ the clock */
/*
 * A shadow of the chain has a clock that is set (plugins/module_utils/shadow.py).
 * It is the same object: who loads it says which of the two it is to be, and
 * the verifier leaves the other one out.
 */
const volatile u32 ct_is_shadow SEC(".rodata.shadow") = 0;
BPF_TABLE("array", int, u64, replay_clock, 1);

static __always_inline u64 bpf_jiffies64(void)
{
	int i = 0;
	u64 *now;

	if (!ct_is_shadow)
		return ct_jiffies64();
	now = replay_clock.lookup(&i);
	return now ? *now : 0;
}

#endif
