package script

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"

	v1 "quill.example/interop/gen/inference/v1"
)

const (
	elements   = 1_500_000
	chunkBytes = 1 << 20
)

// streamInfer sends a tensor of 6 MB to the model "identity" in chunks, and reads it back.
func (s *Script) streamInfer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	stream, err := s.client.StreamInfer(ctx)
	if err != nil {
		return err
	}
	data := make([]byte, 4*elements)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // never fails
	name := "x"
	meta := &v1.TensorMeta{Shape: []int64{elements}, Dtype: v1.DataType_DATA_TYPE_UINT32, Name: &name}
	sent := make(chan error, 1)
	go func() { sent <- sendTensor(stream, meta, data) }()
	got, received := receiveTensor(stream, meta)
	if received != nil {
		return received
	}
	return first(<-sent, check(bytes.Equal(got, data), "the elements that came back are others"))
}

func sendTensor(stream Tensors, meta *v1.TensorMeta, data []byte) error {
	header := &v1.InferHeader{Model: "identity", Tensors: []*v1.TensorMeta{meta}}
	if err := stream.Send(&v1.StreamInferRequest{Part: &v1.StreamInferRequest_Header{Header: header}}); err != nil {
		return err
	}
	for offset := 0; offset < len(data); offset += chunkBytes {
		piece := data[offset:min(offset+chunkBytes, len(data))]
		chunk := &v1.TensorChunk{
			Sequence: uint32(offset / chunkBytes),
			Data:     piece,
			IsFinal:  offset+chunkBytes >= len(data),
			Offset:   uint64(offset),
			Crc32C:   crc32.Checksum(piece, crc32.MakeTable(crc32.Castagnoli)),
		}
		if err := stream.Send(&v1.StreamInferRequest{Part: &v1.StreamInferRequest_Chunk{Chunk: chunk}}); err != nil {
			return err
		}
	}
	return stream.CloseRequest()
}

func receiveTensor(stream Tensors, want *v1.TensorMeta) ([]byte, error) {
	var data []byte
	hasHeader, isFinal := false, false
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return data, check(hasHeader && isFinal, "header %v, last chunk %v", hasHeader, isFinal)
		}
		if err != nil {
			return nil, err
		}
		if header := message.GetHeader(); header != nil {
			if len(header.Tensors) != 1 || header.Tensors[0].GetName() != want.GetName() {
				return nil, fmt.Errorf("the header is %v", header)
			}
			hasHeader = true
			continue
		}
		chunk := message.GetChunk()
		if chunk.GetOffset() != uint64(len(data)) || isFinal {
			return nil, fmt.Errorf("a chunk at %d, not %d", chunk.GetOffset(), len(data))
		}
		data, isFinal = append(data, chunk.GetData()...), chunk.GetIsFinal()
	}
}
