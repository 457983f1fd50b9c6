# Whether the samples of a batch are computed apart from one another, so that a batch may be parted.
#
# A dimension of size `a * batch` has `each` numbers of a sample next to one another, then those of the next sample, and all
# of that `a ÷ each` times. `[x, y]` of two batches has the samples of x before those of y: `a` is 2, `each` 1.

"""
Whether the value of each sample depends on no other sample, as far as the operations tell. The products of any samples
are then those of these samples alone, but for inputs that all samples share, to whose cotangents each contributes.
"""
function samples_apart(g::Graph)
    at, each = Dict{Int,Int}(), Dict{Int,Int}()  # nodes that differ from sample to sample => the dimension of the samples
    for i in live(g, g.value, Dict{Int,Int}())
        n = g.nodes[i]
        any(x -> x isa SizeOf, n.inputs) && return false
        symbolic = findall(d -> d isa Tuple, n.shape)
        if isempty(symbolic)
            any(j -> haskey(at, j), operands(n)) && return false
            continue
        end
        length(symbolic) == 1 && last(n.shape[only(symbolic)]) == 0 || return false
        count = next_to_one_another(g, n, only(symbolic), at, each)
        count == 0 && return false
        at[i], each[i] = only(symbolic), count
    end
    return all(i -> haskey(at, i) && has_samples(g.nodes[i].shape), g.value)
end

"Whether a shape's last dimension, PyTorch's first, counts the samples."
has_samples(shape) = !isempty(shape) && last(shape) == (1, 0)

"Operations along one dimension, or several, which leave the others as they are."
const ALONG = Set{Symbol}((
    :slice, :embed, :cat, :flip, :index_select, :index_add, :gather, :scatter, :scatter_add, :argsort, keys(RUNNING)...,
))

"Operations on matrices, which lie in the first dimensions."
const OF_MATRICES = Set{Symbol}((:lu, :lu_solve, :solve_triangular, :cholesky, :matrix_exp, :eigh, :qr, :svd))

"""
How many numbers of a sample an operation leaves next to one another along dimension `d`, if it keeps the samples apart, or 0;
`at` and `each` are of the operands that have samples.
"""
function next_to_one_another(g::Graph, n::Node, d::Int, at, each)
    counts = unique(each[j] for j in operands(n) if haskey(each, j))
    length(counts) > 1 && return 0
    count = isempty(counts) ? first(n.shape[d]) : only(counts)
    n.op === :reshape || return stays_apart(g, n, d, at) ? count : 0
    x = only(operands(n))
    before(shape, d) = prod(shape[1:(d - 1)]; init = 1)
    count, rest = divrem(before(g.nodes[x].shape, at[x]) * count, before(n.shape, d))
    return rest == 0 && count > 0 && first(n.shape[d]) % count == 0 ? count : 0
end

"Whether an operation other than `reshape` keeps the samples apart; `at` has the dimensions of the operands that have samples."
function stays_apart(g::Graph, n::Node, d::Int, at)
    shape(j) = g.nodes[j].shape
    alike(j) = !haskey(at, j) || (at[j] == d && shape(j)[d] == n.shape[d])
    if n.op === :input
        return g.inputs[n.attrs["index"] + 1].kind in (:z, :arg) && has_samples(n.shape) && d == length(n.shape)
    elseif ispointwise(n)
        return all(alike, operands(n))
    elseif n.op === :permute
        return true
    elseif n.op in (:mm, :bmm)
        x, y = (get(at, j, 0) for j in n.inputs)
        return x != 1 && y != 2 && (x == 0 || y == 0 || x == y == 3)
    elseif haskey(REDUCTIONS, n.op)
        whole = g.nodes[n.inputs[1]]
        over = n.op === :prod ? [n.attrs["dim"]] : n.attrs["dims"]
        return !(at[n.inputs[1]] in (juliadim(whole, k) for k in over))
    elseif n.op === :cat && juliadim(n, n.attrs["dim"]) == d
        return all(j -> get(at, j, 0) == d, operands(n))  # the samples of each operand, one operand after the other
    elseif n.op in ALONG
        along = n.op === :flip ? n.attrs["dims"] : [n.attrs["dim"]]
        return all(k -> juliadim(n, k) != d, along) && all(j -> haskey(at, j) && alike(j), operands(n))
    elseif n.op === :searchsorted
        table, x = n.inputs
        return alike(x) && (length(shape(table)) == 1 ? !haskey(at, table) : haskey(at, table) && alike(table) && d > 1)
    elseif n.op in (:fourier, :fourier_sum)
        return d > 1 && all(j -> haskey(at, j) && at[j] == d, operands(n))
    elseif n.op in (:conv, :conv_input)
        image, weights = n.inputs
        return !haskey(at, weights) && at[image] == length(shape(image)) && has_samples(shape(image)) && d == length(n.shape)
    elseif n.op in OF_MATRICES
        return d == length(n.shape) && all(j -> get(at, j, 0) == length(shape(j)) > 1, operands(n))
    end
    return false
end

"What is computed for each sample."
of_samples(g::Graph) = [g.nodes[i] for i in live(g, g.value, Dict{Int,Int}()) if any(d -> d isa Tuple, g.nodes[i].shape)]

"About how many operations on numbers an evaluation takes."
function work(g::Graph, batch::Int)
    fixed = Dict(i => 0 for i in frontier(g))
    return sum(live(g, g.value, fixed); init = 0) do i
        n = g.nodes[i]
        (haskey(fixed, i) || n.op in (:input, :const, :full, :reshape, :permute, :slice, :expand)) && return 0
        size = elements(n.shape, batch)
        n.op in (:mm, :bmm) && return 2size * dimsize(g.nodes[n.inputs[1]].shape[1], batch)
        n.op in (:conv, :conv_input) && return 2size * patch(g, n)
        return 8size
    end
end

"Products that a number of a convolution is the sum of."
patch(g::Graph, n::Node) = elements(g.nodes[n.inputs[2]].shape, 1) ÷ max(1, dimsize(n.shape[end - 1], 1))
