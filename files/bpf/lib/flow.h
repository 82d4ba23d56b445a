// SPDX-License-Identifier: GPL-2.0-only
/* The parsed packet, as stages hand it on, and the flow table's key and value. */

#include "lib/base.h"

/* What the tracker made of the packet; templates/guest.h.j2 says more. */
struct ct_found {
	u8 outcome;	/* enum ct_count: what the frame was counted as */
	u8 state;	/* of the flow after this packet: enum tcp_state or enum sctp_state, by f->proto */
	u8 bits;	/* enum found_bits */
	u8 forward;	/* enum forward_turn */
};

/* Whether the packet goes past the stack, where the chain forwards. */
enum forward_turn {
	FORWARD_NOT = 0,
	FORWARD_NOW = 1,
	FORWARD_REFRESH = 2,	/* it would, but it is the stack's turn to see one */
};

enum found_bits {
	FOUND_FLOW = 1 << 0,	/* there is an entry; else all other bits are 0 */
	FOUND_NEW = 1 << 1,	/* the entry begins with this packet */
	FOUND_REPLY = 1 << 2,	/* the packet comes from the side that did not begin */
	FOUND_SEEN_REPLY = 1 << 3,	/* that side was heard */
	FOUND_ASSURED = 1 << 4,
	FOUND_EGRESS = 1 << 5,	/* the flow was begun on the egress hook */
	FOUND_WAS_ASSURED = 1 << 6,	/* it was assured before this packet */
};

/*
 * struct flow stands in the XDP metadata, in front of the frame, from the entry
 * program until prs_end.  32 bytes: what every kernel grants.
 */
struct flow {
	__be32 sip;	/* source of the packet, or of the packet that an ICMP error quotes */
	__be32 dip;
	__be16 sport;	/* for ICMP queries: the id */
	__be16 dport;	/* for ICMP queries: type << 8 | code of the request */
	u32 bytes;	/* of the IP packet: header and payload */
	union {
		u32 tcp_sack;	/* highest sequence number acknowledged, SACK blocks included */
		struct ct_found found;	/* for guests, once the packet is counted */
	};
	u16 l4_off;	/* from the start of the frame to the transport header */
	u8 l3_off;	/* and to the IP header */
	u8 proto;
	u8 tcp_flags;	/* enum tcp_flag, byte 13 of the header */
	u8 tcp_opts;	/* window scale in the low 4 bits, enum tcp_opt */
	u8 bits;	/* enum flow_bits */
	u8 vlans;	/* number of VLAN tags in vlan */
	u16 vlan[2];	/* VLAN ids, the outer one first */
};

enum flow_bits {
	FLOW_EGRESS = 1 << 0,	/* came in on the egress hook */
	FLOW_RELATED = 1 << 1,	/* an ICMP error; addresses and ports are those it quotes */
	FLOW_QUERY = 1 << 2,	/* an ICMP query: may open a flow */
	FLOW_ANSWER = 1 << 3,	/* an ICMP answer: the ports are those of its query, turned round */
	FLOW_V6 = 1 << 4,	/* sip and dip are not used: the addresses stand at l3_off */
	FLOW_FRAGMENT = 1 << 5,	/* part of a datagram; IPv6: sip is its id, dip offset and M flag, and where the header stands << 16 */
	FLOW_WHOLE = 1 << 6,	/* completes a datagram that came in fragments */
	FLOW_OPENS = 1 << 7,	/* SCTP: the chunks may open a flow */
};

enum tcp_flag {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_PSH = 0x08,
	TCP_ACK = 0x10,
	TCP_URG = 0x20,
	TCP_ECE = 0x40,
	TCP_CWR = 0x80,
};

enum tcp_opt {
	TCP_OPT_SCALE_MASK = 0x0f,
	TCP_OPT_HAS_SCALE = 0x10,
	TCP_OPT_SACK_PERM = 0x20,
	TCP_OPT_PRESENT = 0x40,	/* there are options at all */
};

/*
 * One key a connection: the side with the smaller (address, port) is "lo".
 * For ICMP queries the asking side's port is the id, the other's is the type
 * and code of the request, and role tells which side asks.
 */
struct ct_key {
	__be32 lo_ip;
	__be32 hi_ip;
	__be16 lo_port;
	__be16 hi_port;
	u8 proto;
	u8 role;
	u16 zone;	/* always 0: flows are not told apart by VLAN, as in the kernel */
};

/* The same for IPv6. */
struct ct_key6 {
	struct in6_addr lo_ip;
	struct in6_addr hi_ip;
	__be16 lo_port;
	__be16 hi_port;
	u8 proto;
	u8 role;
	u16 zone;
};

/* One direction of a flow; the td_ fields are struct ip_ct_tcp_state's, TCP alone uses them. */
struct ct_half {
	u64 packets;
	u64 bytes;	/* of IP packets */
	union {
		u32 td_end;	/* highest sequence number sent, plus one */
		u32 vtag;	/* SCTP: the verification tag that this side sends; 0 when not known */
	};
	u32 td_maxend;	/* highest the receiver's window allowed */
	u32 td_maxwin;	/* largest window this side announced, scaled */
	u32 td_maxack;	/* highest acknowledgement this side sent */
};

enum ct_dir { DIR_ORIG = 0, DIR_REPLY = 1 };

/*
 * 112 bytes, so that an entry takes 192 bytes of kernel memory with its hash
 * node and bucket.  All but ctl is written under CTL_LOCK only.
 */
struct ct_entry {
	struct ct_half half[2];	/* enum ct_dir */
	u64 ctl;		/* CTL_*: state and status change as one word */
	u32 expires;		/* jiffies, low 32 bits */
	u32 last_seen;		/* jiffies, low 32 bits */
	u32 created;		/* seconds of jiffies64 */
	u32 last_seq;		/* the last segment, as in struct ip_ct_tcp */
	u32 last_ack;
	u32 last_end;		/* UDP: jiffies after which two-way traffic is a stream */
	u16 last_win;
	u8 last_index:3, last_dir:1, last_wscale:4;
	u8 last_flags;		/* enum td_flag of an ignored SYN, and how the connection opened; SCTP: enum sctp_flag */
	u8 scale;		/* window scale: orig in the low 4 bits, reply in the high 4 */
	u8 retrans;
	u8 td_flags[2];		/* enum td_flag; SCTP: whether the side sent an INIT that is not done with */
	u32 rel_packets;	/* ICMP errors that quote this flow, and the bytes of their IP packets */
	u32 rel_bytes;
};

/* What is told of a flow that begins, changes or ends: 184 bytes, with the ring buffer's own 8 three cache lines. */
struct ct_event {
	u64 seq;		/* one for each event, whether there was room for it or not */
	u64 jiffies;		/* now, as the clock of the entry has it */
	u64 ktime;		/* and as CLOCK_MONOTONIC has it, in ns */
	u8 what;		/* enum ct_event_kind */
	u8 reason;		/* enum ct_count: why it ended */
	u8 v6;			/* key holds a struct ct_key6, not a struct ct_key */
	u8 reserved[5];
	u8 key[sizeof(struct ct_key6)];
	struct ct_entry entry;	/* as the packet left it, or before it was deleted; not locked */
};

/* What a TCP segment says, in host order. */
struct tcp_seg {
	u32 seq;
	u32 end;	/* seq plus what the segment occupies of the sequence space */
	u32 ack;
	u32 sack;
	u32 win;	/* as announced: not scaled */
	u8 flags;	/* enum tcp_flag */
	u8 class;	/* enum tcp_class */
	u8 opts;	/* enum tcp_opt, window scale in the low bits */
	u8 reserved;
};

/*
 * What an SCTP packet says: its chunks, those that do not change a state left
 * out.  It is worked on in scratch: what the verifier can not know it need not follow.
 */
struct sctp_seg {
	u64 chunks;	/* enum sctp_chunk in their order, four bits each, the first one lowest; then CHUNK_OTHER */
	u32 vtag;	/* as it stands in the header */
	u32 init_tag;	/* of INIT and INIT ACK */
	u16 seen;	/* a bit for each enum sctp_chunk that is there */
	u16 reflected;	/* the T bit of each of the chunks */
	u8 listed;	/* number of chunks */
	u8 state;	/* enum sctp_state, while the chunks are gone through */
	u8 established;	/* that state was entered, if only between two chunks */
	u8 ignore;	/* the packet is let pass, but does not count */
};

/* What does not fit the metadata, a CPU each. */
struct scratch {
	union {
		struct tcp_seg seg;	/* of every TCP segment, from its parser on */
		struct sctp_seg sctp;
	};
	struct flow flow;	/* of the fused entry programs */
};

/* What is counted of each guest, by its slot. */
struct guest_count {
	u64 seen;	/* frames that came to the guest */
	u64 passed;	/* that it sent on by guest_next() */
	u64 dropped;	/* by guest_drop(); what is left it took out of the chain by itself */
};

/* An interface whose packets may be forwarded, by its number and address: numbers repeat between namespaces. */
struct port_key {
	u32 ifindex;
	u8 mac[ETH_ALEN];
	u16 reserved;
};

enum port_flag {
	PORT_TRANSMITS = 1 << 0,	/* its driver takes redirected frames */
};

#define FRAG_RANGES	16

struct frag_key {
	struct in6_addr src;	/* an IPv4 address stands in the first word */
	struct in6_addr dst;
	u32 id;
	u8 proto;		/* IPv4 only (RFC 791); in IPv6 later fragments need not tell */
	u8 v6;
	u16 reserved;
};

/* Payload that came, in units of 8 bytes; a datagram's end is rounded up. */
struct frag_range {
	u16 start, end;
};

/* How struct frag_queue is filled in; another release's, which knew other rules, is not gone on with. */
#define FRAG_FORM	1

/* A datagram of which fragments came. */
struct frag_queue {
	u64 ctl;		/* CTL_LOCK */
	u32 expires;		/* jiffies, low 32 bits */
	u32 got;		/* bytes of payload that came */
	u32 total;		/* bytes of payload; 0 until the last fragment tells */
	u16 header;		/* bytes of the first fragment's IP header */
	u8 first;		/* the first fragment came: flow and seg are filled in */
	u8 ranges;		/* number of ranges */
	struct flow flow;
	union {
		struct tcp_seg seg;	/* end counts the first fragment's payload alone */
		struct sctp_seg sctp;	/* the first fragment's chunks */
	};
	u16 claimed;		/* bytes of payload that the transport header says there are */
	u8 ecn;			/* a bit for each value of the ECN field that came */
	u8 form;		/* FRAG_FORM */
	struct frag_range range[FRAG_RANGES];
	u16 len;		/* where the part ends that reaches furthest, in units of 8 bytes */
};

#define CTL_LOCK	(1ULL << 63)
#define CTL_STATE	0xfULL
#define CTL_SEEN_REPLY	(1ULL << 4)
#define CTL_ASSURED	(1ULL << 5)
#define CTL_ORIG_HI	(1ULL << 6)	/* the initiator is the hi side of the key */
#define CTL_EGRESS	(1ULL << 7)	/* its first packet came in on the egress hook */
#define CTL_VLANS_SHIFT	8
#define CTL_AGGREGATED	(1ULL << 10)	/* a packet counted in it was several segments on the wire */
#define CTL_VLAN_SHIFT	16
#define VLAN_VID_BITS	12
