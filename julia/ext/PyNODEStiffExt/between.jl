# The solution between the steps of KenCarp5.

"Into how many parts a step is cut: with four, the cubic interpolant's error is a 256th."
const PARTS = 4

"How many times as long as a step the one beside it may be that is taken to interpolate with it."
const MOST_UNEQUAL = 4

"""
At `s`, the weights of the values and of the slopes at three nodes in the polynomial of degree five through them (Hermite), and
those in its derivative.
"""
function hermite(nodes::NTuple{3,Float64}, s::Float64)
    weights = map((1, 2, 3)) do i
        x, a, b = nodes[i], nodes[mod1(i + 1, 3)], nodes[mod1(i + 2, 3)]
        l, dl = (s - a) * (s - b) / ((x - a) * (x - b)), (2s - a - b) / ((x - a) * (x - b))
        c = inv(x - a) + inv(x - b)  # the slope of `l` at its node
        u, v = 1 - 2c * (s - x), s - x
        (u * l^2, v * l^2, 2l * (u * dl - c * l), l * (l + 2v * dl))
    end
    return ntuple(k -> map(w -> w[k], weights), 4)
end

"""
    refined(solution, ::KenCarp5)

The same solution with nodes within its steps. The interpolant of the method is the cubic polynomial of a step's ends, whose error
is hundreds of times the tolerance where that is tight: a step is as long as a method of the fifth order lets it be. The nodes lie on
the polynomial of degree five through the ends of a step and of one beside it, the shorter one, where the slope does not jump
between them. Where there is none, the step is left as it is.
"""
function PyNODE.refined(solution, ::KenCarp5)
    t, u, k = solution.t, solution.u, solution.k
    steps = diff(t)
    joined(i) = 1 < i <= length(steps) && !iszero(steps[i - 1]) && !iszero(steps[i]) && k[i][2] == k[i + 1][1]
    ts, us, ks = t[1:1], u[1:1], k[1:1]
    add!(time, state, slopes) = (push!(ts, time); push!(us, state); push!(ks, slopes))
    for (i, h) in enumerate(steps)
        before = joined(i) ? abs(steps[i - 1]) : Inf
        after = joined(i + 1) ? abs(steps[i + 1]) : Inf
        slope = k[i + 1][1]
        if min(before, after) <= MOST_UNEQUAL * abs(h)
            at = before <= after ? i - 1 : i
            a, b, c = at, at + 1, at + 2
            nodes = map(j -> (t[j] - t[i]) / h, (a, b, c))
            da, db, dc = k[b][1], k[c][1], k[c][2]
            for m in 1:(PARTS - 1)
                (p, q, r), (dp, dq, dr), (p′, q′, r′), (dp′, dq′, dr′) = hermite(nodes, m / PARTS)
                state, next = similar(u[i]), similar(u[i])
                @. state = p * u[a] + q * u[b] + r * u[c] + h * (dp * da + dq * db + dr * dc)
                @. next = (p′ * u[a] + q′ * u[b] + r′ * u[c]) / h + dp′ * da + dq′ * db + dr′ * dc
                add!(t[i] + m / PARTS * h, state, [slope, next])
                slope = next
            end
        end
        add!(t[i + 1], u[i + 1], [slope, k[i + 1][2]])
    end
    interp = setproperties(solution.interp, (; timeseries = us, ts, ks))
    return setproperties(solution, (; t = ts, u = us, k = ks, interp))
end
