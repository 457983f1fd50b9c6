# Convolutions with a stride of one, on a processor: a block of rows of the result at a time.
#
# The windows are laid out along all spatial dimensions but the last, so that the places of the kernel along the last
# dimension meet the same columns, only some rows further on: these columns are `kernel[N]` times smaller than those of
# `im2col`, and stay in a processor's cache. A row is what has one position along the last dimension. The transpose of such
# a convolution is another one, of the kernel turned round; and the windows that it lays out serve the products with the
# derivative in the weights as well.
#
# Shapes: columns `(pixels, places * channels / groups)`, with `places = prod(kernel[1:(N - 1)])`; weights `(places *
# channels / groups, channels out / groups, kernel[N], groups)`; all else as in `convolution.jl`.

"A convolution that is computed by rows: its sizes, and memory for a block of them."
struct Rows{T,N}
    image::NTuple{N,Int}
    out::NTuple{N,Int}
    kernel::NTuple{N,Int}
    window::Window{N}
    block::Int           # rows of the result whose windows are laid out at once
    chunk::Int           # rows of the result that a matrix product has
    columns::Matrix{T}
    weights::Array{T,4}
    sums::Array{T,4}     # of products with the derivative in the weights: like these, the first two dimensions swapped
    turned::Matrix{T}    # `(channels out / groups, pixels)`
    others::Vector{Rows{T,N}}  # the same weights, and memory of their own, for further threads
end

"Numbers that the columns of a block have at most, where that is a few rows: what stays in a processor's cache."
const ROWS_AT_ONCE = 2^15

"Products of two numbers in a matrix product for which OpenBLAS copies neither factor, and has one thread: its fastest."
const SMALL_PRODUCT = 10^6

"""
    Rows{T}(image, weight, out, groups, window; threads = 1)

For an image, weights and a result of these sizes, on a processor, whose threads share a large one. `nothing` where
`im2col` does as well: strides, few channels, or so few pixels that arranging the weights costs more than is saved.
"""
function Rows{T}(image::Dims, weight::Dims, out::Dims, groups::Int, window::Window{N}; threads::Int = 1) where {T,N}
    kernel, patch, outputs = weight[1:N], prod(weight[1:(N - 1)]) * weight[N + 1], weight[N + 2] ÷ groups
    row, batch = prod(out[1:(N - 1)]), out[N + 2]
    all(==(1), window.stride) && patch >= 16 && row * out[N] * batch >= 16outputs || return nothing
    beyond = (kernel[N] - 1) * window.dilation[N]
    block = clamp(ROWS_AT_ONCE ÷ (row * patch) - beyond, min(out[N], max(4beyond, 1)), out[N])
    chunk = clamp(SMALL_PRODUCT ÷ (row * patch * outputs), 1, block)
    weights = zeros(T, patch, outputs, kernel[N], groups)
    part(others) = Rows{T,N}(
        image[1:N], out[1:N], kernel, window, block, chunk,
        zeros(T, row * (block + beyond), patch),
        weights,
        zeros(T, outputs, patch, kernel[N], groups),
        zeros(T, outputs, row * block),
        others,
    )
    worth = 2prod(out) * patch * kernel[N] ÷ WORTH_A_THREAD
    several = clamp(worth, 1, min(threads, cld(out[N], block) * groups * batch))
    return part([part(Rows{T,N}[]) for _ in 2:several])
end

"The window of a convolution's transpose."
function transposed(w::Window{N}, kernel) where {N}
    return Window{N}(w.stride, ntuple(i -> (kernel[i] - 1) * w.dilation[i] - w.padding[i], Val(N)), w.dilation)
end

rowlength(r::Rows) = prod(Base.front(r.out))
places(r::Rows) = prod(Base.front(r.kernel))
taps(r::Rows) = last(r.kernel)

"Calls `f(r, rows, sample, group)` with each block of rows, whose windows are laid out in `r` or another thread's."
function by_rows(f::F, r::Rows, image, batch) where {F}
    blocks = CartesianIndices((cld(last(r.out), r.block), axes(r.weights, 4), batch))
    isempty(r.others) && return run_rows(f, r, image, blocks, eachindex(blocks))
    parts = parted(1:length(blocks), 1 + length(r.others))
    on_threads(run_rows, length(parts), f, r, image, blocks, parts)
    return
end

run_rows(thread, f::F, r::Rows, image, blocks, parts) where {F} =
    run_rows(f, thread == 1 ? r : r.others[thread - 1], image, blocks, parts[thread])

function run_rows(f::F, r::Rows, image, blocks, part) where {F}
    for i in part
        block, g, b = Tuple(blocks[i])
        rows = (r.block * (block - 1) + 1):min(r.block * block, last(r.out))
        lay_out!(r, image, rows, b, g)
        f(r, rows, b, g)
    end
    return
end

"Lay out the windows of some rows of the result."
function lay_out!(r::Rows{T,N}, image, rows, b, g) where {T,N}
    w, in, height = r.window, r.image, size(r.columns, 1)
    channels, groups = size(r.columns, 2) ÷ places(r), size(r.weights, 4)
    from = ((b - 1) * groups + g - 1) * channels * prod(in)
    out = (Base.front(r.out)..., length(rows) + (taps(r) - 1) * last(w.dilation))
    # Of a single block, rows that lie outside of the image are never written: they are zero.
    stale = 1:(r.block == last(r.out) ? N - 1 : N)
    for (position, k) in enumerate(CartesianIndices(Base.front(r.kernel)))
        offset = (ntuple(i -> (k[i] - 1) * w.dilation[i] - w.padding[i], Val(N - 1))..., first(rows) - 1 - last(w.padding))
        between = (places(r) * height, prod(in))
        at = (position - 1) * height
        move_channels!(Gather(), r.columns, at, image, from, channels, between, out, in, offset, w.stride, stale)
    end
    return
end

"Calls `f(pixels, k, columns)` for parts of a block: pixels of the result, and the columns that place `k` of the kernel meets."
function products(f::F, r::Rows, rows) where {F}
    row, step = rowlength(r), last(r.window.dilation)
    for first in 1:(r.chunk):length(rows), k in 1:taps(r)
        last = min(first + r.chunk - 1, length(rows))
        part = (row * (first - 1) + 1):(row * last)
        f(part, k, view(r.columns, part .+ row * step * (k - 1), :))
    end
    return
end

"Pixels of an image before those of a block."
pixels_before(r::Rows, rows) = rowlength(r) * (first(rows) - 1)

"One block of `y = x ∗ w`; `y` is as matrices."
function convolve!(y, r::Rows, rows, b, g)
    products(r, rows) do part, k, columns
        mul!(view(y, part .+ pixels_before(r, rows), :, g, b), columns, view(r.weights, :, :, k, g), true, k > 1)
    end
end

"Add what a block has to the products with the derivative in the weights, of an image as matrices and windows of `dy`."
function add_weights!(r::Rows, image, rows, b, g)
    offset = pixels_before(r, rows)
    @inbounds for c in axes(image, 2)
        @simd ivdep for p in 1:(rowlength(r) * length(rows))
            r.turned[c, p] = image[offset + p, c, g, b]
        end
    end
    products(r, rows) do part, k, columns
        mul!(view(r.sums, :, :, k, g), view(r.turned, :, part), columns, true, true)
    end
end

"`y = x ∗ w`; `y` and `w` as matrices."
function conv_rows!(y, image, w, r::Rows)
    @inbounds for g in axes(w, 3), k in 1:taps(r), o in axes(w, 2), c in 1:(size(r.weights, 1) ÷ places(r)), q in 1:places(r)
        r.weights[q + places(r) * (c - 1), o, k, g] = w[q + places(r) * (k - 1 + taps(r) * (c - 1)), o, g]
    end
    by_rows((part, rows, b, g) -> convolve!(y, part, rows, b, g), r, image, size(y, 4))
    return y
end

"The kernel turned round, channels for channels out."
function turn!(r::Rows, w)
    @inbounds for g in axes(w, 3), k in 1:taps(r), c in axes(r.weights, 2), o in axes(w, 2), q in 1:places(r)
        from = places(r) + 1 - q + places(r) * (taps(r) - k + taps(r) * (c - 1))
        r.weights[q + places(r) * (o - 1), c, k, g] = w[from, o, g]
    end
    return
end

"The product of `dy` with the derivative of `conv_rows!` in the image; all but `dy` as matrices."
function conv_input_rows!(image, dy, w, r::Rows)
    turn!(r, w)
    by_rows((part, rows, b, g) -> convolve!(image, part, rows, b, g), r, dy, size(image, 4))
    return image
end

"The same, and the products with the derivative in the weights, which are left in `r.sums`."
function conv_pullback_rows!(dx, image, dy, w, r::Rows)
    turn!(r, w)
    summed(r) do
        by_rows(r, dy, size(image, 4)) do part, rows, b, g
            convolve!(dx, part, rows, b, g)
            add_weights!(part, image, rows, b, g)
        end
    end
    return dx
end

"The products with the derivative in the weights alone."
function conv_weight_rows!(image, dy, r::Rows)
    summed(r) do
        by_rows((part, rows, b, g) -> add_weights!(part, image, rows, b, g), r, dy, size(image, 4))
    end
    return r
end

"Calls `f`, which adds to the sums of each thread; then they are in `r.sums`."
function summed(f::F, r::Rows) where {F}
    fill!(r.sums, zero(eltype(r.sums)))
    foreach(part -> fill!(part.sums, zero(eltype(part.sums))), r.others)
    f()
    foreach(part -> r.sums .+= part.sums, r.others)
    return
end

"Those that are left in `r.sums`, in the order of the weights."
function put_weights!(dw, r::Rows)
    @inbounds for g in axes(dw, 3), o in axes(dw, 2), c in axes(r.sums, 1), k in 1:taps(r), q in 1:places(r)
        from = places(r) + 1 - q + places(r) * (o - 1)
        dw[q + places(r) * (k - 1 + taps(r) * (c - 1)), o, g] = r.sums[c, from, taps(r) + 1 - k, g]
    end
    return dw
end
