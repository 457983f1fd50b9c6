# The windows of images laid out as columns, `im2col`, and its transpose.
#
# `N` is the number of spatial dimensions. Shapes below: image `(size..., channels, batch)`, columns
# `(out..., kernel..., channels, samples)`.

struct Window{N}
    stride::NTuple{N,Int}
    padding::NTuple{N,Int}
    dilation::NTuple{N,Int}
end

function Window(n::Node)
    read(name) = Tuple(Int(x) for x in Iterators.reverse(n.attrs[name]))
    return Window(read("stride"), read("padding"), read("dilation"))
end

"Number of elements in the columns that are laid out at once: what stays in a processor's cache, or keeps a GPU busy."
columns_at_once(::Array) = 2^15
columns_at_once(::AbstractArray) = 2^24

samples(x, range) = view(x, ntuple(_ -> Colon(), Val(ndims(x) - 1))..., range)
out_of(columns, ::Window{N}) where {N} = ntuple(i -> size(columns, i), Val(N))
kernel_of(columns, ::Window{N}) where {N} = CartesianIndices(ntuple(i -> size(columns, N + i), Val(N)))

"Part of the padded image that meets the place `k` of the kernel."
function patch(image, w::Window{N}, k, out) where {N}
    ranges = ntuple(Val(N)) do i
        first = 1 + (k[i] - 1) * w.dilation[i]
        first:w.stride[i]:(first + (out[i] - 1) * w.stride[i])
    end
    return view(image, ranges..., :, :)
end

"Part of the columns that belongs to the place `k` of the kernel."
place(columns, ::Window{N}, k) where {N} = view(columns, ntuple(_ -> Colon(), Val(N))..., Tuple(k)..., :, :)

"Lay out the windows of the samples `range` of an image, which has its padding, as the columns of the samples `places`."
function gather!(columns, places, image, range, w::Window)
    to, from = samples(columns, places), samples(image, range)
    for k in kernel_of(columns, w)
        place(to, w, k) .= patch(from, w, k, out_of(columns, w))
    end
    return columns
end

"The transpose of `gather!`: add the columns to the image."
function scatter!(image, range, columns, places, w::Window)
    to, from = samples(image, range), samples(columns, places)
    for k in kernel_of(columns, w)
        patch(to, w, k, out_of(columns, w)) .+= place(from, w, k)
    end
    return image
end

# On a processor, going through views of a few pixels costs more than what is copied. There the image has no padding
# (what lies outside of it is zero), and goes run by run.

struct Gather end
struct Scatter end

gather!(columns::Array, places, image::Array, range, w::Window) = move!(Gather(), columns, places, image, range, w)

function scatter!(image::Array, range, columns::Array, places, w::Window)
    move!(Scatter(), columns, places, image, range, w)
    return image
end

"Gather or scatter, place by place of the kernel."
function move!(op, columns, places, image, range, w::Window{N}) where {N}
    out, in, channels = out_of(columns, w), ntuple(i -> size(image, i), Val(N)), size(image, N + 1)
    for (position, k) in enumerate(kernel_of(columns, w))
        offset = ntuple(i -> (k[i] - 1) * w.dilation[i] - w.padding[i], Val(N))
        at = (first(places) - 1) * stride(columns, 2N + 2) + (position - 1) * prod(out)
        from = (first(range) - 1) * stride(image, N + 2)
        between = stride(columns, 2N + 1), stride(image, N + 1)  # channels, which follow each other over all samples
        move_channels!(op, columns, at, image, from, length(range) * channels, between, out, in, offset, w.stride)
    end
    return columns
end

"""
The same for one place, which lies `offset` from the pixels; `at` and `from` are what is before the first channel. Only along
these dimensions may columns that lie outside of the image hold something: `stale`.
"""
function move_channels!(op, columns, at, image, from, channels, between, out, in, offset, stride, stale = eachindex(out))
    if all(==(1), stride) && Base.front(out) == Base.front(in)
        moveshifted!(op, columns, at, image, from, channels, between, out, in, offset, stale)
    else
        moverows!(op, columns, at, image, from, channels, between, out, in, offset, stride)
    end
    return
end

"Pixels that meet the image one place further on are one run, but for those that meet what is outside of the image."
function moveshifted!(op, columns, at, image, from, channels, between, out, in, offset, stale)
    shift = sum(offset .* steps(in))
    first, last = max(1, 1 - shift), min(prod(out), prod(in) - shift)
    op isa Scatter && outside!(columns, at, channels, between[1], out, in, offset, stale)
    for c in 0:(channels - 1)
        run!(op, columns, at + c * between[1] + first, image, from + c * between[2] + shift + first, last - first + 1, 1)
    end
    op isa Gather && outside!(columns, at, channels, between[1], out, in, offset, stale)
    return
end

"Distance in memory between neighbours in each dimension."
steps(size::NTuple{N}) where {N} = ntuple(i -> prod(ntuple(j -> j < i ? size[j] : 1, Val(N))), Val(N))

"Set to zero the pixels of each channel that meet what is outside of the image along some dimensions."
function outside!(columns, at, channels, between, out, in, offset, dimensions)
    for d in dimensions
        inner, n = steps(out)[d], out[d]
        for range in (1:min(n, -offset[d]), max(1, in[d] - offset[d] + 1):n)
            isempty(range) && continue
            start, length_of = at + (first(range) - 1) * inner, length(range) * inner
            for c in 0:(channels - 1)
                zeros!(columns, start + c * between + 1, length_of, inner * n, prod(out) ÷ (inner * n))
            end
        end
    end
    return
end

"Set to zero `count` runs of a length, which begin a step from each other."
@inline function zeros!(x, from, length, step, count)
    if length == 1
        @inbounds for i in 0:(count - 1)
            x[from + i * step] = 0
        end
    else
        @inbounds for i in 0:(count - 1)
            @simd ivdep for k in 0:(length - 1)
                x[from + i * step + k] = 0
            end
        end
    end
    return
end

function moverows!(op, columns, at, image, from, channels, between, out, in, offset, stride)
    n, step = out[1], stride[1]
    first, last = max(1, cld(-offset[1], step) + 1), min(n, fld(in[1] - 1 - offset[1], step) + 1)
    for c in 0:(channels - 1)
        to, source = at + c * between[1], from + c * between[2] + (first - 1) * step + offset[1] + 1
        op isa Gather && zeros!(columns, to + 1, prod(out), 0, 1)
        for j in CartesianIndices(Base.tail(out))
            met = (Tuple(j) .- 1) .* Base.tail(stride) .+ Base.tail(offset)
            if all(0 .<= met .< Base.tail(in))
                row = source + sum(met .* Base.tail(steps(in)); init = 0)
                run!(op, columns, to + first, image, row, last - first + 1, step)
            end
            to += n
        end
    end
    return
end

# Inlined, so that a step of one is known.
@inline function run!(::Gather, columns, at, image, from, n, step)
    if step == 1
        n > 0 && unsafe_copyto!(columns, at, image, from, n)
        return
    end
    @inbounds @simd ivdep for i in 0:(n - 1)
        columns[at + i] = image[from + i * step]
    end
    return
end

@inline function run!(::Scatter, columns, at, image, from, n, step)
    @inbounds @simd ivdep for i in 0:(n - 1)
        image[from + i * step] += columns[at + i]
    end
    return
end
