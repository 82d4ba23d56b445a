// SPDX-License-Identifier: GPL-2.0-only
/* ICMP query types: which open a flow, and which answer. */

/*
 * Put the tuple of an ICMP query or answer into the flow: the asking side's port
 * is the id, the other's the type and code of the request, whichever way the
 * packet goes.  False where the type is neither.
 */
static __always_inline bool icmp_query(struct flow *f, struct icmphdr *icmp)
{
	u8 request;
	__be16 query;

	switch (icmp->type) {
	case ICMP_ECHO:
	case ICMP_TIMESTAMP:
	case ICMP_INFO_REQUEST:
	case ICMP_ADDRESS:
		f->sport = icmp->un.echo.id;
		f->dport = bpf_htons(icmp->type << 8 | icmp->code);
		f->bits |= FLOW_QUERY;
		return true;
	case ICMP_ECHOREPLY:
		request = ICMP_ECHO;
		break;
	case ICMP_TIMESTAMPREPLY:
	case ICMP_INFO_REPLY:
	case ICMP_ADDRESSREPLY:
		request = icmp->type - 1;
		break;
	default:
		return false;
	}
	query = bpf_htons(request << 8 | icmp->code);
	f->sport = query;
	f->dport = icmp->un.echo.id;
	f->bits |= FLOW_ANSWER;
	return true;
}
