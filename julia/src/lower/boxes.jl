# The derivative in the weights of a convolution whose image has the same number everywhere.
#
# Such is the image of the time where the time is a channel. A weight's derivative is then that number times the sum of the
# cotangent over a box: the positions of the result at which the weight's place in the kernel meets the image.
#
# Shapes: image `(size..., channels, batch)`, cotangent `(out..., channels out, batch)`, weights `(kernel..., channels / groups,
# channels out)`; `N` is the number of spatial dimensions.

"The boxes of a convolution: for each dimension and place of the kernel, the positions of the result that it meets the image at."
struct Boxes{N}
    positions::NTuple{N,Vector{UnitRange{Int}}}
end

function Boxes(w::Window{N}, image, kernel, out) where {N}
    return Boxes(ntuple(Val(N)) do d
        map(1:kernel[d]) do k
            offset = (k - 1) * w.dilation[d] - w.padding[d]  # the place in the image at the first position, less one
            max(1, cld(-offset, w.stride[d]) + 1):min(out[d], fld(image[d] - 1 - offset, w.stride[d]) + 1)
        end
    end)
end

"The products of `dy` with the derivative in the weights, of an image that is `value` everywhere; threads share the channels."
function sum_boxes!(dw::Host, dy::Host, value, boxes::Boxes{N}, threads::Int) where {N}
    count = size(dy, N + 1)
    share(channels -> sum_boxes!(dw, dy, value, boxes, channels), threads, count, size(dw, 1) * length(dy) ÷ max(count, 1))
    return dw
end

function sum_boxes!(dw, dy, value, boxes::Boxes{N}, channels::AbstractUnitRange) where {N}
    T, rows, others = eltype(dw), first(boxes.positions), Base.tail(boxes.positions)
    lines, places = map(x -> CartesianIndices(ntuple(d -> size(x, d + 1), Val(N - 1))), (dy, dw))
    for o in channels
        view(dw, ntuple(_ -> Colon(), Val(N + 1))..., o) .= zero(T)
        for b in axes(dy, N + 2), line in lines, k in axes(dw, 1)
            row = zero(T)
            @inbounds @simd for i in rows[k]
                row += dy[i, line, o, b]
            end
            for place in places
                meets(others, line, place) && (dw[k, place, 1, o] += value * row)
            end
        end
        for c in 2:size(dw, N + 1), place in places, k in axes(dw, 1)
            dw[k, place, c, o] = dw[k, place, 1, o]
        end
    end
    return dw
end

# On a device, box by box.
function sum_boxes!(dw, dy, value, boxes::Boxes{N}, ::Int) where {N}
    for place in CartesianIndices(ntuple(d -> size(dw, d), Val(N)))
        box = view(dy, map(getindex, boxes.positions, Tuple(place))..., :, :)
        sums = sum(box; dims = (ntuple(identity, Val(N))..., N + 2))
        view(dw, Tuple(place)..., :, :) .= value .* reshape(sums, 1, :)
    end
    return dw
end

"Whether a line of the result lies in the boxes of a place of the kernel."
meets(positions::Tuple, line, place) = all(map((p, i, k) -> i in p[k], positions, Tuple(line), Tuple(place)))

function lower_boxes!(l::Lowering, i, n::Node, into)
    x, dy = n.inputs
    shapes = (shape_of(l, x), n.shape, shape_of(l, dy))
    boxes = newbuffer!(l, (_, batch, _) -> Boxes(Window(n), sizes.(shapes, batch)...); contiguous = false, alias = false)
    y = materialise!(l, dy; contiguous = true)
    b = destination!(l, n, into)
    value = literal(l.graph.nodes[x].inputs[1], l.T)
    emit!(l, :(sum_boxes!($(bufsym(b)), $(bufsym(y)), $value, $(bufsym(boxes)), $(l.threads))))
    l.buffer[i] = b
end
