import torch

from llmopt.grids import integer
from llmopt.grids.base import AffineParams, QuantizedTensor
from llmopt.linalg import damped_factor

BLOCK = 256
SUB = 16
IMP = "cond"
SCALESTEP = True
HDAMP = True
SEARCHLOOP = 0
REDO = 0


def column_order(diagonal, size, act_order):
    cols = diagonal.shape[0]
    if act_order == "none":
        return torch.arange(cols)
    if act_order == "full":
        return torch.sort(diagonal, descending=True, stable=True)[1]
    g = diagonal.view(-1, size)
    inner = torch.sort(g, dim=1, descending=True, stable=True)[1]
    outer = torch.sort(g.amax(1), descending=True, stable=True)[1]
    return (inner + torch.arange(g.shape[0])[:, None] * size)[outer].reshape(-1)


def objective(delta_t, H):  # per row
    return ((H @ delta_t) * delta_t).sum(0)


def solve(weight, statistics, options, settings, log=None):
    rows, cols = weight.shape
    size = integer.group_length(cols, options.group_size)
    H = statistics.hessian
    order = column_order(H.diagonal(), size, settings.act_order)
    F = damped_factor(H, settings.damping, order=order)
    R = F.upper
    dr = R.diagonal().clone()
    M = torch.triu(R / dr, 1)
    Hp = H[order][:, order].clone()
    Hp.diagonal().add_((F.damping if HDAMP else 1e-6) * Hp.diagonal().mean())
    dh = Hp.diagonal()
    wt = weight.t()[order].contiguous()
    G = cols // size
    delta = torch.zeros_like(wt)
    scale = torch.empty(G, rows)
    zero = torch.empty(G, rows)
    C = torch.zeros_like(wt)
    imp = {
        "cond": dr**2,
        "diag": H.diagonal()[order],
        "none": None,
        "mix": dr * H.diagonal()[order].sqrt(),
    }[IMP]
    top = 2**options.bits - 1
    if settings.static_groups:
        p = integer.fit(wt.t().contiguous(), options, imp)
        scale[:] = p.scale.t()
        zero[:] = p.zero.t()

    def fitgroup(T, g):
        if settings.static_groups:
            return
        s = slice(0, size)
        sc, z = integer.fit_block(
            T[:size].t(), options, None if imp is None else imp[g * size : (g + 1) * size]
        )
        scale[g] = sc
        zero[g] = z

    def roundgroup(T, W, D, Cc, K, s, z, first):
        """sequential rounding in one group; T [n,R] targets modified; D updated; K coupling [n,n] strictly (j->k)"""
        n = T.shape[0]
        lo = -z
        hi = top - z
        for b in range(0, n, SUB):
            e = min(b + SUB, n)
            ch = torch.empty(e - b, T.shape[1])
            for i in range(b, e):
                c = torch.div(T[i], s).round_()
                c = torch.clamp(c, lo, hi)
                Cc[i] = c
                nd = W[i] - c * s
                ch[i - b] = nd - D[i]
                D[i] = nd
                if i + 1 < e:
                    T[i + 1 : e].addr_(K[i, i + 1 : e], ch[i - b])
            if e < n:
                T[e:].addmm_(K[b:e, e:].t(), ch)

    for g in range(G):
        b, e = g * size, (g + 1) * size
        T = wt[b:e] + M[:b, b:e].t() @ delta[:b]
        fitgroup(T, g)
        if SEARCHLOOP:
            best = None
            s0 = scale[g].clone()
            z0 = zero[g].clone()
            for f in [1.0] + [1 + SEARCHLOOP * k for k in (-3, -2, -1, 1, 2)]:
                s = integer.round_scale(s0 * f)
                T2 = T.clone()
                D2 = torch.zeros_like(T)
                C2 = torch.zeros_like(T)
                roundgroup(T2, wt[b:e], D2, C2, M[b:e, b:e], s, z0, True)
                # conditional error: (T-final target handled) sum dr^2*(target-q)^2
                q = C2 * s
                cost = ((T2 - q) ** 2 * (dr[b:e] ** 2)[:, None]).sum(0)
                if best is None:
                    best = cost
                else:
                    scale[g] = torch.where(cost < best, s, scale[g])
                    best = torch.minimum(best, cost)
        roundgroup(T, wt[b:e], delta[b:e], C[b:e], M[b:e, b:e], scale[g], zero[g], True)
    if log is not None:
        log.append(objective(delta, Hp).sum().item())
    for sweep in range(settings.refine):
        Mh = Hp / dh  # [j,k]: T_k = sum_j D_j H_jk/H_kk
        for g in range(G):
            b, e = g * size, (g + 1) * size
            if SCALESTEP:
                grad = Hp[b:e] @ delta  # [n,R]
                c = C[b:e]
                Hc = Hp[b:e, b:e] @ c
                den = (c * Hc).sum(0)
                num = (c * grad).sum(0)
                st = torch.where(den > 0, num / den, torch.zeros_like(den))
                ns = integer.round_scale(scale[g] + st)
                st = ns - scale[g]
                ok = (-2 * st * num + st * st * den < 0) & (den > 0)
                if not options.signed_scales:
                    ok &= ns > 0
                st = torch.where(ok, st, torch.zeros_like(st))
                scale[g] = scale[g] + st
                delta[b:e] -= c * st
            T = wt[b:e] - delta[b:e] + Mh[:, b:e].t() @ delta
            K = torch.triu(Mh[b:e, b:e], 1)
            roundgroup(T, wt[b:e], delta[b:e], C[b:e], K, scale[g], zero[g], False)
        if log is not None:
            log.append(objective(delta, Hp).sum().item())
    codes = torch.empty(cols, rows, dtype=torch.uint8)
    codes[order] = (C.view(G, size, rows) + zero[:, None]).to(torch.uint8).view(cols, rows)
    inv = None
    sc, ze = scale, zero
    if settings.act_order == "full" and not settings.static_groups:
        inv = torch.empty(cols, dtype=torch.int32)
        inv[order] = (torch.arange(cols) // size).to(torch.int32)
    else:
        gg = order.view(G, size)[:, 0] // size
        sc = torch.empty_like(scale)
        ze = torch.empty_like(zero)
        sc[gg] = scale
        ze[gg] = zero
    return QuantizedTensor(
        grid=options.grid,
        codes=codes.t().contiguous(),
        params=AffineParams(
            bits=options.bits,
            group_size=options.group_size,
            symmetric=options.symmetric,
            scale=sc.t().contiguous(),
            zero=ze.t().contiguous().to(torch.int32),
            group_index=inv,
        ),
    )
