// SPDX-License-Identifier: GPL-2.0-only
/* ICMP and ICMPv6 query types: which open a flow, and which answer. */

#include "lib/flow.h"

#define ICMP6_ERROR_MAX		127	/* RFC 4443, 2.1 */
#define ND_ROUTER_SOLICIT	133	/* RFC 4861, 4 */
#define ND_ROUTER_ADVERT	134
#define ND_NEIGHBOUR_SOLICIT	135
#define ND_NEIGHBOUR_ADVERT	136
#define ND_MRD_ADVERT		151	/* RFC 4286: multicast router discovery */
#define ND_MRD_SOLICIT		152
#define ICMP6_NI_QUERY		139	/* RFC 4620 */
#define ICMP6_NI_REPLY		140

/*
 * Put the tuple of a query or answer into the flow: the asking side's port is
 * the id, the other's the type and code of the request, whichever way the
 * packet goes.
 */
static __always_inline void query_tuple(struct flow *f, const struct icmphdr *icmp, u8 request)
{
	__be16 query = bpf_htons(request << 8 | icmp->code), id = icmp->un.echo.id;
	bool asks = icmp->type == request;

	f->sport = asks ? id : query;
	f->dport = asks ? query : id;
	f->bits |= asks ? FLOW_QUERY : FLOW_ANSWER;
}

/* False where the type is neither a query nor an answer. */
static __always_inline bool icmp_query(struct flow *f, const struct icmphdr *icmp)
{
	switch (icmp->type) {
	case ICMP_ECHO:
	case ICMP_ECHOREPLY:
		query_tuple(f, icmp, ICMP_ECHO);
		return true;
	case ICMP_TIMESTAMP:
	case ICMP_INFO_REQUEST:
	case ICMP_ADDRESS:
		query_tuple(f, icmp, icmp->type);
		return true;
	case ICMP_TIMESTAMPREPLY:
	case ICMP_INFO_REPLY:
	case ICMP_ADDRESSREPLY:
		query_tuple(f, icmp, icmp->type - 1);
		return true;
	default:
		return false;
	}
}

/* The headers of both versions begin alike. */
static __always_inline bool icmp6_query(struct flow *f, const struct icmphdr *icmp)
{
	switch (icmp->type) {
	case ICMPV6_ECHO_REQUEST:
	case ICMPV6_ECHO_REPLY:
		query_tuple(f, icmp, ICMPV6_ECHO_REQUEST);
		return true;
	case ICMP6_NI_QUERY:
	case ICMP6_NI_REPLY:
		query_tuple(f, icmp, ICMP6_NI_QUERY);
		return true;
	default:
		return false;
	}
}
